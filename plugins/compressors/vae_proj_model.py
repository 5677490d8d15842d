"""The frozen video VAE of `vae-proj`, through diffusers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from safetensors import SafetensorError
from torch import Tensor

from ...core.codec import from_bytes
from ...core.errors import UserError
from ...core.fit import pad_to
from ...core.shapes import Bytes
from ..patchifier_specs import VaeProj
from .vae_proj_files import config_of, line, model_folder

CLASSES = ("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video")


@frozen(kw_only=True)
class VideoVae:
    """A VAE on disk, loaded when first used; its weights are no parameters of the compressor.

    Attributes:
        folder: with config.json and safetensors files.
        kind: diffusers' class.
        channels: of a cell.
        space: pixels to a cell, down and across.
    """

    folder: Path
    kind: str
    channels: int
    space: int

    @classmethod
    def of(cls, spec: VaeProj) -> VideoVae:
        """Find the VAE that a spec names, reading its config only.

        Raises:
            UserError: there is none, or it is of another class.
        """
        folder = model_folder(
            "vae-proj", spec.weights, spec.subfolder, "Lightricks/LTX-Video (subfolder: vae)"
        )
        config = config_of("vae-proj", folder, "_class_name", "latent_channels")
        kind = str(config["_class_name"])
        if kind not in CLASSES:
            raise UserError(f"vae-proj reads {' and '.join(CLASSES)}, but {folder} is of {kind}")
        return cls(
            folder=folder, kind=kind, channels=int(config["latent_channels"]), space=spec.space
        )

    @torch.no_grad()
    def encode(self, frames: Bytes, dtype: torch.dtype) -> Tensor:
        """Give the normalised means `[B, C, 1 + k, h, w]` of 1 + 8k frames (at 8 to a cell).

        Last row and column are repeated to whole cells.
        """
        device = frames.device
        vae = _loaded(self.folder, self.kind, dtype, str(device))
        pixels = pad_to(from_bytes(frames, dtype), self.space, self.space)
        with torch.autocast(device.type, enabled=False):
            latents: Tensor = vae.encode(pixels).latent_dist.mode()
        mean: Tensor = vae.latents_mean.view(1, -1, 1, 1, 1)
        std: Tensor = vae.latents_std.view(1, -1, 1, 1, 1)
        return (latents - mean) * float(vae.config.scaling_factor) / std

    def check(self, spec: VaeProj) -> None:
        """Refuse a spec whose `space` or `time` are not the VAE's: UserError."""
        space, time = _ratios(self.folder, self.kind)
        for name, told, found in (("space", spec.space, space), ("time", spec.time, time)):
            if told != found:
                raise UserError(
                    f"vae-proj: {name} is {told}, but a cell of {self.folder} has {found}"
                )


@functools.lru_cache(maxsize=8)
def _ratios(folder: Path, kind: str) -> tuple[int, int]:
    """Give pixels and frames to a cell, as diffusers derives them from the config."""
    cls = _class(kind)
    with torch.device("meta"):
        vae = cls.from_config(cls.load_config(folder))
    return int(vae.spatial_compression_ratio), int(vae.temporal_compression_ratio)


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, kind: str, dtype: torch.dtype, device: str) -> Any:
    """Give the frozen VAE on a device."""
    try:
        vae, info = _class(kind).from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"vae-proj: weights {folder} cannot be read: {line(error)}") from error
    if info["missing_keys"]:
        raise UserError(f"vae-proj: weights {folder} lack {min(info['missing_keys'])}")
    return vae.eval().requires_grad_(False).to(device, dtype)


def _class(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)
