"""How HunyuanVideo's heads turn, and FramePack's mean over cells beyond the frame's end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..dit.rotary import Axes, Rotary, rotary


def axes_of(config: Any) -> Axes:
    """Give how the heads of a model turn, from diffusers' config; float32, as its table is."""
    return Axes(config.rope_theta, tuple(config.rope_axes_dim), torch.float32)


def rotate(x: Tensor, turns: Rotary) -> Tensor:
    """Give the heads `[B, N, heads, head width]` turned, computed in float32, in their own dtype.

    float32 whatever the dtype, because diffusers does so and the rounding is part of the model.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turns
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def replicated(axes: Axes, positions: Tensor, extents: Tensor) -> Rotary:
    """Give the mean rotary embedding of the cells that each token covers, as FramePack pools it.

    FramePack fills the table up to whole blocks by repeating its last row and column. So where a
    token covers fewer rows (columns) than others of its moment do, the last of them counts for the
    missing ones, too. A frame smaller than one block, and frames missing in time, are not filled.

    Args:
        axes: of the model.
        positions: centres of what tokens cover, float64 `[B, N, 3]`.
        extents: real cells that they cover, `[B, N, 3]`.

    Source: FramePack, arXiv 2504.12626; diffusers' `_pad_rotary_emb`.
    """
    share = extents / _blocks(positions, extents)  # [B, N, 3]
    counts = torch.tensor([width // 2 for width in axes.widths], device=positions.device)
    share = share.repeat_interleave(counts, dim=-1)[:, :, None].float()
    inside, last = rotary(axes, positions, extents), rotary(axes, positions + (extents - 1) / 2)
    return Rotary(
        inside.cos * share + last.cos * (1 - share), inside.sin * share + last.sin * (1 - share)
    )


def _blocks(positions: Tensor, extents: Tensor) -> Tensor:
    """Give the size of each token's block, `[B, N, 3]`: the largest extent of its moment."""
    batch = torch.arange(positions.shape[0], device=positions.device, dtype=positions.dtype)
    sample = batch[:, None].expand(positions.shape[:2])
    moments = torch.stack([sample, positions[..., 0], extents[..., 0]], dim=-1).flatten(0, 1)
    _, group = moments.unique(dim=0, return_inverse=True)
    flat = extents[..., 1:].flatten(0, 1)
    most = flat.new_zeros(int(group.max()) + 1, 2)
    most.scatter_reduce_(0, group[:, None].expand(-1, 2), flat, "amax")
    return torch.cat([extents[..., :1], most[group].view_as(extents[..., 1:])], dim=-1)
