"""What codecs of diffusers' VAEs share: weights that are loaded at the first chunk."""

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
from ..weights.find import Kind, VaeSource, digest, find, vae_at_hand
from .specs import VaeSpec

# ⟦backbones/codecs/load.py⟧ Loading a diffusers VAE that `weights` found.


BAD = (OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, SafetensorError)


def load(source: VaeSource, cls: type[Any], dtype: torch.dtype) -> Any:
    """Return the model, ready to run, on the CPU; nothing of it trains.

    Raises:
        UserError: a file is damaged, lacks tensors, or has others than its config says.
    """
    read = _read_folder if source.path.is_dir() else _read_file
    try:
        with torch.random.fork_rng(devices=[]):
            model, missing = read(source, cls, dtype)
    except BAD as error:
        raise UserError(f"weights {source.path} cannot be read: {first_line(error)}") from error
    if missing:
        count, one = len(missing), min(missing)
        raise UserError(f"weights {source.path} lack {count} tensors, such as {one}")
    return model.eval().requires_grad_(False)


def _read_folder(source: VaeSource, cls: type[Any], dtype: torch.dtype) -> tuple[Any, list[str]]:
    model, info = cls.from_pretrained(
        str(source.path),
        torch_dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    return model, list(info["missing_keys"])


def _read_file(source: VaeSource, cls: type[Any], dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Read one file, in diffusers' layout or in Wan's own, which diffusers' converter reads."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    with torch.device("meta"):
        model = cls(**source.config)
    wanted, tensors = model.state_dict().keys(), load_file(source.path)
    if not wanted <= tensors.keys():
        tensors = convert_wan_vae_to_diffusers(tensors)
    missing = [name for name in wanted if name not in tensors]
    if not missing:
        found = {name: tensors[name].to(dtype) for name in wanted}
        model.load_state_dict(found, strict=True, assign=True)
    return model, missing


V = TypeVar("V", bound=VaeSpec)


class VaeCodec(Codec[V]):
    """A VAE of diffusers as a codec.

    Building one reads nothing. `identity` finds the weights, and fetches those of a hub id; the
    first `encode` or `decode` loads them to where the codec is by then (`.to(device)`); `unload`
    lets go of them. The VAE computes in the spec's number type, whatever autocast says; results
    have the type of the chunk that was given. Nothing of it trains.
    """

    anchor: Tensor
    model: nn.Module | None

    def __init__(self, spec: V) -> None:
        super().__init__(spec)
        self.register_buffer("anchor", torch.zeros(()), persistent=False)  # says where we are
        self.register_module("model", None)

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """Which weights the spec asks for."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What `identity` says before the hash of the weights."""

    @abstractmethod
    def prepare(self, vae: Any) -> None:
        """Take what encoding and decoding need from a VAE that was just loaded."""

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
            UserError: there are no weights, or others than the spec says (`weights.find`).
        """
        spec = self.spec
        tiles = "" if spec.tile is None else f"-tile{spec.tile}-{spec.overlap}"
        dtype = "" if spec.dtype == "float32" else f"-{spec.dtype}"
        return f"{self.label}-{self._digest}{tiles}{dtype}"

    @property
    def at_hand(self) -> bool:
        """Whether a VAE is where `weights` says, or in the hub's cache."""
        return vae_at_hand(self.spec.weights)

    @functools.cached_property
    def source(self) -> VaeSource:
        """Where the weights are; errors as `identity`."""
        return find(self.spec.weights, self.kind)

    @functools.cached_property
    def _digest(self) -> str:
        return digest(self.source)

    @property
    def vae(self) -> Any:
        """The model, loaded now if it was not.

        Raises:
            UserError: the weights are damaged, or as `identity`.
        """
        if self.model is None:
            import diffusers

            cls = getattr(diffusers, self.kind.cls)
            vae = load(self.source, cls, getattr(torch, self.spec.dtype))
            self.prepare(vae)
            self.model = vae.to(self.anchor.device)
        return self.model

    def unload(self) -> None:
        """Let go of the weights; the next chunk loads them again."""
        self.model = None

    def computing(self, chunk: Tensor) -> Tensor:
        """Return a chunk in the number type of the VAE."""
        found: torch.dtype = getattr(torch, self.spec.dtype)
        return chunk.to(found)

    def exactly(self) -> torch.autocast:
        """Return a context without autocast: it would change the numbers."""
        return torch.autocast(self.anchor.device.type, enabled=False)
