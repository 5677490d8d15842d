"""Rotary embedding of Wan at real positions; at whole ones the same bits as diffusers' table."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

THETA = 10000.0


class Rotary(NamedTuple):
    """Cosines and sines of the angles of each token, float32 `[B, N, 1, head width / 2]`."""

    cos: Tensor
    sin: Tensor


def axis_widths(head_width: int) -> tuple[int, int, int]:
    """Give how many of a head's channels turn with time, row and column."""
    side = 2 * (head_width // 6)
    return head_width - 2 * side, side, side


def rotary(positions: Tensor, head_width: int) -> Rotary:
    """Give the rotary embedding of tokens at `positions`, float64 `[B, N, 3]`, fractions allowed.

    Angles, cosines and sines are computed in float64 and rounded last, as diffusers does, so that
    long takes keep their places and whole positions equal `WanRotaryPosEmbed` to the bit.
    """
    angles = torch.cat(
        [
            positions[..., axis, None].to(torch.float64) * frequencies(width, positions.device)
            for axis, width in enumerate(axis_widths(head_width))
        ],
        dim=-1,
    )
    return Rotary(angles.cos().float()[:, :, None], angles.sin().float()[:, :, None])


def frequencies(width: int, device: torch.device) -> Tensor:
    """Give the `width / 2` frequencies of one axis, float64; made on the CPU, so alike anywhere."""
    steps = torch.arange(0, width, 2, dtype=torch.float64) / width
    return (1.0 / THETA**steps).to(device)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Give the heads `[B, N, heads, head width]` turned, in their own dtype."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(x)
