"""What codecs of diffusers' VAEs share: weights, found at once and loaded at the first chunk."""

from __future__ import annotations

import functools
from abc import abstractmethod
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.codec import Codec
from ...core.tools.hub import first_line
from ...core.values.grid import Size3
from ..weights.find import VaeRelease, VaeWeights, find_vae, vae_available_offline
from .specs import VaeSpec
from .wan22_release import to_diffusers

V = TypeVar("V", bound=VaeSpec)


class VaeCodec(Codec[V]):
    """A VAE of diffusers as a codec.

    Building one reads nothing. `identity` finds the weights, and downloads those of a hub id; the
    first `encode` or `decode` loads them to where the codec is by then (`.to(device)`); `unload`
    frees them. The VAE computes in the spec's number type, whatever autocast says; results have the
    type of the chunk that was given. Nothing of it trains.
    """

    anchor: Tensor
    model: nn.Module | None

    def __init__(self, spec: V) -> None:
        super().__init__(spec)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # says on which device
        self.register_module("model", None)

    @property
    @abstractmethod
    def release(self) -> VaeRelease:
        """Which weights the spec asks for."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What `identity` says before the hash of the weights."""

    @abstractmethod
    def prepare(self, vae: Any) -> None:
        """Set up a VAE that was just loaded, and keep what encoding and decoding need of it."""

    @property
    def channels(self) -> int:
        """Channels C of a latent cell."""
        return self.spec.channels

    @property
    def stride(self) -> Size3:
        """Pixels to a latent cell."""
        return self.spec.stride

    @property
    def identity(self) -> str:
        """Name, hash of the weights, and what else latents depend on: tiles, number type.

        Raises:
            UserError: there are no weights, or others than the spec says (see `find_vae`).
        """
        spec = self.spec
        tiles = "" if spec.tile is None else f"-tile{spec.tile}-{spec.overlap}"
        dtype = "" if spec.dtype == "float32" else f"-{spec.dtype}"
        return f"{self.label}-{self._digest}{tiles}{dtype}"

    @property
    def available_offline(self) -> bool:
        """Whether a VAE is where `weights` says, or in the hub's cache."""
        return vae_available_offline(self.spec.weights)

    @functools.cached_property
    def weights(self) -> VaeWeights:
        """Where the weights are; errors as `identity`."""
        return find_vae(self.spec.weights, self.release)

    @functools.cached_property
    def _digest(self) -> str:
        return self.weights.digest()

    @property
    def vae(self) -> Any:
        """The model, loaded now if it was not.

        Raises:
            UserError: the weights are damaged, or as `identity`.
        """
        if self.model is None:
            import diffusers

            cls = getattr(diffusers, self.release.cls)
            vae = load_vae(self.weights, cls, getattr(torch, self.spec.dtype))
            self.prepare(vae)
            self.model = vae.to(self.anchor.device)
        return self.model

    def unload(self) -> None:
        """Free the weights; the next chunk loads them again."""
        self.model = None

    def as_computed(self, chunk: Tensor) -> Tensor:
        """Return a chunk in the number type that the VAE computes in."""
        dtype: torch.dtype = getattr(torch, self.spec.dtype)
        return chunk.to(dtype)

    def without_autocast(self) -> torch.autocast:
        """Return a context without autocast, which would change the numbers."""
        return torch.autocast(self.anchor.device.type, enabled=False)


# What loading may raise where files are damaged or do not fit.
FAULTS = (OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, SafetensorError)


def load_vae(weights: VaeWeights, cls: type[Any], dtype: torch.dtype) -> Any:
    """Return the model, ready to run, on the CPU; nothing of it trains.

    Raises:
        UserError: a file is damaged, lacks tensors, or has others than its config says.
    """
    read = _read_folder if weights.path.is_dir() else _read_file
    try:
        with torch.random.fork_rng(devices=[]):
            model, missing = read(weights, cls, dtype)
    except FAULTS as error:
        raise UserError(f"weights {weights.path} cannot be read: {first_line(error)}") from error
    if missing:
        count, one = len(missing), min(missing)
        raise UserError(f"weights {weights.path} lack {count} tensors, such as {one}")
    return model.eval().requires_grad_(False)


def _read_folder(weights: VaeWeights, cls: type[Any], dtype: torch.dtype) -> tuple[Any, list[str]]:
    model, info = cls.from_pretrained(
        str(weights.path),
        torch_dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    return model, list(info["missing_keys"])


def _read_file(weights: VaeWeights, cls: type[Any], dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Read one file, in diffusers' layout or in Wan's own, which diffusers' converter reads."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    with torch.device("meta"):
        model = cls(**weights.config)
    names, tensors = model.state_dict().keys(), load_file(weights.path)
    if not names <= tensors.keys():
        residual = weights.config.get("is_residual")
        tensors = to_diffusers(tensors) if residual else convert_wan_vae_to_diffusers(tensors)
    missing = [name for name in names if name not in tensors]
    if not missing:
        state = {name: tensors[name].to(dtype) for name in names}
        model.load_state_dict(state, strict=True, assign=True)
    return model, missing
