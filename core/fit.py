"""Fit: all that a compressor may know of a backbone, so that plugins never see backbones."""

from __future__ import annotations

import hashlib

import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from .grid import Geometry, Rate, ceil_div
from .shapes import Latents


@frozen(kw_only=True)
class Needs:
    """What must be cached for a plugin.

    Attributes:
        rates: of LR latents.
        pixels: the frames themselves.
        hr: whether the values of the full-size latents are read, not only their shape.
    """

    rates: frozenset[Rate] = frozenset()
    pixels: bool = False
    hr: bool = True

    def __or__(self, other: Needs) -> Needs:
        """Give what both need."""
        return Needs(
            rates=self.rates | other.rates,
            pixels=self.pixels or other.pixels,
            hr=self.hr or other.hr,
        )


@frozen(kw_only=True)
class Length:
    """A context length in tokens, exact or an upper bound."""

    tokens: int
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.tokens:,}" if self.exact else f"≤ {self.tokens:,}"


@frozen(eq=False, kw_only=True)
class Fit:
    """Shapes of the backbone, and a copy of its first projection.

    Attributes:
        geometry: plain values.
        patch_weight: the DiT's patch embedding `[D, C, p_t, p_h, p_w]`, a detached copy.
        patch_bias: `[D]`.
    """

    geometry: Geometry
    patch_weight: Tensor
    patch_bias: Tensor

    def tokens(self, latents: Latents) -> Tensor:
        """Give the DiT's own tokens of latents, `[B, T', H', W', D]`.

        Where height or width is no multiple of the patch, the last row or column is repeated
        (the odd-size rule), so that sizes round up.
        """
        return project(latents, self.patch_weight, self.patch_bias)

    @property
    def digest(self) -> str:
        """Hash of the projection (bf16 values), kept in encoder files: another one is refused."""
        data = b"".join(
            x.detach().cpu().bfloat16().float().numpy().tobytes()
            for x in (self.patch_weight, self.patch_bias)
        )
        return hashlib.sha256(data).hexdigest()[:16]


def pad_to(latents: Latents, height: int, width: int) -> Tensor:
    """Give latents whose height and width are multiples: last row and column repeated once."""
    down = ceil_div(latents.shape[-2], height) * height - latents.shape[-2]
    right = ceil_div(latents.shape[-1], width) * width - latents.shape[-1]
    if not (down or right):
        return latents
    return F.pad(latents, (0, right, 0, down, 0, 0), mode="replicate")


def project(latents: Latents, weight: Tensor, bias: Tensor) -> Tensor:
    """Give the tokens `[B, T', H', W', D]` of latents under a patch embedding."""
    patch = weight.shape[2:]
    padded = pad_to(latents, int(patch[1]), int(patch[2]))
    return F.conv3d(padded, weight, bias, stride=tuple(patch)).movedim(1, -1)
