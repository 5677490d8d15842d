"""Rotary embedding of Wan at real positions; at whole ones the same bits as diffusers' table."""

from __future__ import annotations

import torch
from torch import Tensor

from ..dit.rotary import Axes, Rotary
from ..dit.rotary import rotary as by_axes

THETA = 10000.0


def axis_widths(head_width: int) -> tuple[int, int, int]:
    """Give how many of a head's channels turn with time, row and column."""
    side = 2 * (head_width // 6)
    return head_width - 2 * side, side, side


def rotary(positions: Tensor, head_width: int, extents: Tensor | None = None) -> Rotary:
    """Give the rotary embedding of tokens at `positions`, float64 `[B, N, 3]`, fractions allowed.

    Angles, cosines and sines are float64 and rounded last, as in diffusers, so that long takes keep
    their places and whole positions equal `WanRotaryPosEmbed` to the bit. With `extents`, the mean
    over all cells that a token covers.
    """
    return by_axes(Axes(THETA, axis_widths(head_width)), positions, extents)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Give the heads `[B, N, heads, head width]` turned, in their own dtype."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(x)
