"""Rotary embedding at real positions, of a token's centre or averaged over what it covers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rotary(NamedTuple):
    """Cosines and sines of the angles of each token, float32 `[B, N, 1, head width / 2]`.

    Averaged ones are no rotation: cos² + sin² is below 1.
    """

    cos: Tensor
    sin: Tensor


class Axes(NamedTuple):
    """How a model's heads turn.

    Attributes:
        theta: base of the frequencies.
        widths: channels of a head that turn with time, row and column, each even.
        dtype: of frequencies and angles, as diffusers' table of the model has it: only so do
            whole positions equal it to the bit.
    """

    theta: float
    widths: tuple[int, int, int]
    dtype: torch.dtype = torch.float64


def rotary(axes: Axes, positions: Tensor, extents: Tensor | None = None) -> Rotary:
    """Return the rotary embedding of tokens at `positions`, rounded to float32 last.

    Args:
        axes: of the model.
        positions: (time, row, column) in latent frames and patch cells, float64 `[B, N, 3]`;
            fractions are allowed.
        extents: how many frames, rows and columns each token covers, `[B, N, 3]`: then cosine
            and sine are the means over all those cells. None: of the centre alone.
    """
    device = positions.device
    steps = torch.cat([frequencies(axes, width) for width in axes.widths]).to(device)
    counts = torch.tensor([width // 2 for width in axes.widths], device=device)
    angles = positions.to(axes.dtype).repeat_interleave(counts, dim=-1) * steps
    cos, sin = angles.cos(), angles.sin()
    if extents is not None:
        covered = extents.to(torch.float64).repeat_interleave(counts, dim=-1)
        share = _mean_turn(covered, steps.to(torch.float64))
        cos, sin = cos * share, sin * share
    return Rotary(cos.float()[:, :, None], sin.float()[:, :, None])


def frequencies(axes: Axes, width: int) -> Tensor:
    """Return the `width / 2` frequencies of one axis; made on the CPU, so alike anywhere."""
    steps = torch.arange(0, width, 2, dtype=axes.dtype) / width
    return 1.0 / axes.theta**steps


def _mean_turn(cells: Tensor, steps: Tensor) -> Tensor:
    """Return the factor that the mean over `cells` places, one apart, makes of the centre's turn.

    Σ exp(iθ(p + k − (n − 1)/2)) / n over k = 0 … n − 1 is exp(iθp) · sin(nθ/2) / (n sin(θ/2)): a
    geometric series. On whole blocks it is what FramePack's average pooling of the table gives; at
    an edge FramePack repeats the last cell, while only what is covered counts here.
    """
    mean = (cells * steps / 2).sin() / (cells * (steps / 2).sin())
    return torch.where(cells == 1, 1.0, mean)
