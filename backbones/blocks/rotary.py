"""Rotary embedding at real positions, of a token's centre or averaged over what it covers."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor


class RotaryTable(NamedTuple):
    """Cosines and sines of the angles of each token, float32 `[B, N, 1, head width / 2]`.

    Averaged ones are no rotation: cos² + sin² is below 1.
    """

    cos: Tensor
    sin: Tensor


class RotaryAxes(NamedTuple):
    """How the channels of a model's heads rotate with the axes of a video.

    Attributes:
        theta: base of the frequencies.
        widths: channels of a head that rotate with time, row and column, each even.
        dtype: of frequencies and angles, as in diffusers' table of the model: only so do whole
            positions equal it to the bit.
    """

    theta: float
    widths: tuple[int, int, int]
    dtype: torch.dtype = torch.float64


def rotary_table(axes: RotaryAxes, positions: Tensor, extents: Tensor | None = None) -> RotaryTable:
    """Return the rotary table of tokens at `positions`, rounded to float32 last.

    Args:
        axes: of the model.
        positions: (time, row, column) in latent frames and patch cells, float64 `[B, N, 3]`;
            fractions are allowed.
        extents: how many frames, rows and columns each token covers, `[B, N, 3]`: then cosine
            and sine are the means over all those cells. None: of the centre alone.
    """
    device = positions.device
    frequencies = torch.cat([_frequencies(axes, width) for width in axes.widths]).to(device)
    counts = torch.tensor([width // 2 for width in axes.widths], device=device)
    angles = positions.to(axes.dtype).repeat_interleave(counts, dim=-1) * frequencies
    cos, sin = angles.cos(), angles.sin()
    if extents is not None:
        cells = extents.to(torch.float64).repeat_interleave(counts, dim=-1)
        factor = _mean_factor(cells, frequencies.to(torch.float64))
        cos, sin = cos * factor, sin * factor
    return RotaryTable(cos.float()[:, :, None], sin.float()[:, :, None])


def _frequencies(axes: RotaryAxes, width: int) -> Tensor:
    """Return the `width / 2` frequencies of one axis; computed on the CPU, so alike anywhere."""
    exponents = torch.arange(0, width, 2, dtype=axes.dtype) / width
    return 1.0 / axes.theta**exponents


def _mean_factor(cells: Tensor, frequencies: Tensor) -> Tensor:
    """Return what the centre's cosine and sine are multiplied by to be the means over `cells`.

    The cells stand one apart, n of them around position p, at frequency θ:
    Σ exp(iθ(p + k − (n − 1)/2)) / n over k = 0 … n − 1 is exp(iθp) · sin(nθ/2) / (n sin(θ/2)), a
    geometric series. On whole blocks it is what FramePack's average pooling of the table gives; at
    the border of a frame FramePack repeats the last cell, while only what is covered counts here.
    """
    mean = (cells * frequencies / 2).sin() / (cells * (frequencies / 2).sin())
    return torch.where(cells == 1, 1.0, mean)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Return heads `[B, N, heads, head width]` rotated by a table, in their own dtype.

    Neighbouring channels are a pair. Half precisions are computed in float32, the table's dtype.
    """
    if (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and _products_agree(x.shape[-1], x.dtype)
    ):
        return _rotate_as_complex(x, table)
    return _rotate_by_parts(x, table)


def _rotate_by_parts(x: Tensor, table: RotaryTable) -> Tensor:
    even, odd = rearrange(x, "... (pairs two) -> two ... pairs", two=2)
    cos, sin = table
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rearrange(rotated, "... pairs two -> ... (pairs two)").type_as(x)


def _rotate_as_complex(x: Tensor, table: RotaryTable) -> Tensor:
    """Return the heads rotated by one product of complex numbers: a quarter of the time on CPUs."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * torch.complex(*table)
    return torch.view_as_real(turned).flatten(-2).type_as(x)


@functools.cache
def _products_agree(width: int, dtype: torch.dtype) -> bool:
    """Return whether this CPU's complex products are to the bit those of the parts.

    They are where a head fills whole vector registers and products are rounded before they are
    added; a compiler may have fused the two.
    """
    if width % 32:
        return False
    numbers = torch.arange(15 * width, device="cpu").view(1, 5, 3, width).double().sin()
    angles = 9 * numbers[:, :, :1, ::2]
    table, x = RotaryTable(angles.cos().float(), angles.sin().float()), numbers.to(dtype)
    return torch.equal(_rotate_as_complex(x, table), _rotate_by_parts(x, table))
