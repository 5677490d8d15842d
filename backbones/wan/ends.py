"""What happens before and after Wan's blocks: time, masks and the head, without any state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STEPS = 1000.0  # Wan counts time in thousandths


def each_token(t: Tensor, frames: int, cells: int) -> Tensor:
    """Give the time of each target token `[B, frames · cells]` of times `[B]` or `[B, frames]`."""
    by_frame = t[:, None].expand(-1, frames) if t.ndim == 1 else t
    return by_frame[:, :, None].expand(-1, -1, cells).flatten(1)


def embed_time(embedder: Any, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Give temb `[..., D]` and modulation `[..., 6, D]` of times `[B]` or `[B, N]`.

    The time half of diffusers' condition embedder, step by step as there; the other half (text)
    ran in `context`. Dtype and device are those of `like`.
    """
    # float64 as it is: 127/1000 in float32 is not 127 thousandths
    exact = t.to(torch.promote_types(t.dtype, torch.float32)) * STEPS
    steps = embedder.timesteps_proj(exact.float().to(like.device).flatten())
    steps = steps.unflatten(0, tuple(t.shape))
    dtype = next(iter(embedder.time_embedder.parameters())).dtype
    if steps.dtype != dtype and dtype != torch.int8:
        steps = steps.to(dtype)
    temb = embedder.time_embedder(steps).type_as(like)
    return temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(-1, (6, -1))


def modulate_out(hidden: Tensor, temb: Tensor, table: Tensor, norm: nn.Module) -> Tensor:
    """Give the tokens as the last projection reads them; temb is `[B, D]` or `[B, N, D]`."""
    table = table.to(temb.device)
    if temb.ndim == 3:
        parts = (table.unsqueeze(0) + temb.unsqueeze(2)).chunk(2, dim=2)
        shift, scale = (part.squeeze(2).to(hidden.device) for part in parts)
    else:
        parts = (table + temb.unsqueeze(1)).chunk(2, dim=1)
        shift, scale = (part.to(hidden.device) for part in parts)
    out: Tensor = norm(hidden.float()) * (1 + scale) + shift
    return out.type_as(hidden)


def unpatchify(tokens: Tensor, grid: torch.Size, patch: tuple[int, int, int]) -> Tensor:
    """Give latents `[B, C, T, H, W]` of the tokens of a grid (time, rows, columns)."""
    cells = tokens.reshape(tokens.shape[0], *grid, *patch, -1)
    return cells.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
