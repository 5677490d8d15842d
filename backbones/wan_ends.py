"""What happens before and after Wan's blocks: time, masks and the head, without any state."""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from ..core.backbone import Cache, VelocityCall
from ..core.grid import Geometry
from ..core.shapes import Valid
from .wan_block import Keys, Masks

STEPS = 1000.0  # Wan counts time in thousandths


@frozen(kw_only=True)
class Setup:
    """What a Wan backbone needs to know beside diffusers' config.

    Attributes:
        geometry: shapes, as compressors may know them.
        attention: `full` or `isolated`.
        memory_time: of memory tokens, 0 to 1, or None to share the targets'.
        time: `sample` or `token`: whether the modulation of targets is made per sample or token.
    """

    geometry: Geometry
    attention: str
    memory_time: float | None
    time: str


def check_call(call: VelocityCall, time: str) -> None:
    """Refuse targets, frames and times that do not belong together.

    Raises:
        ValueError: `frames` does not name every target, or `t` is by frame where it cannot be.
    """
    batch, frames = call.noisy.shape[0], call.noisy.shape[2]
    if tuple(call.frames.shape) != (batch, frames):
        raise ValueError(f"frames are {tuple(call.frames.shape)}, targets {(batch, frames)}")
    if call.t.ndim == 2 and time == "sample":
        raise ValueError("t is [B, K], but this backbone knows one time a sample: give [B]")
    if tuple(call.t.shape) not in ((batch,), (batch, frames)):
        raise ValueError(f"t is {tuple(call.t.shape)}, not {(batch,)} or {(batch, frames)}")


def each_token(t: Tensor, frames: int, cells: int) -> Tensor:
    """Give the time of each target token `[B, frames · cells]` of times `[B]` or `[B, frames]`."""
    by_frame = t[:, None].expand(-1, frames) if t.ndim == 1 else t
    return by_frame[:, :, None].expand(-1, -1, cells).flatten(1)


def embed_time(embedder: Any, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Give temb `[..., D]` and modulation `[..., 6, D]` of times `[B]` or `[B, N]`.

    The time half of diffusers' condition embedder, step by step as there; the other half (text)
    ran in `context`. Dtype and device are those of `like`.
    """
    steps = embedder.timesteps_proj((t.to(like.device).float() * STEPS).flatten())
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


def masks_of(valid: Valid, targets: int, device: torch.device) -> Masks | None:
    """Give the masks of a memory before `targets` tokens, or None where all of it is real."""
    if bool(valid.all()):
        return None
    announce_masks()
    kept = valid.to(device)
    none = ~kept.any(dim=1, keepdim=True)  # softmax over nothing is NaN; targets never see these
    ones = torch.ones(kept.shape[0], targets, dtype=torch.bool, device=device)
    return Masks(memory=kept | none, all=torch.cat([kept, ones], dim=1))


@functools.cache
def announce_masks() -> None:
    """Say once that a slower way was taken."""
    logging.getLogger(__name__).warning(
        "memories of different lengths in one batch: attention runs with a mask, which is slower "
        "and which flash and sage backends refuse; batch by length to avoid it"
    )


def pairs(cache: Cache) -> list[Keys]:
    """Give the cached keys and values block by block."""
    return [Keys(key, value) for key, value in zip(cache.keys, cache.values, strict=True)]


def empty_cache(device: torch.device) -> Cache:
    """Give the cache of an empty memory."""
    return Cache(
        keys=(),
        values=(),
        positions=torch.zeros(0, 0, 3, dtype=torch.float64),
        valid=torch.zeros(0, 0, dtype=torch.bool, device=device),
    )


def through(model: Any, block: nn.Module, *args: Any) -> Any:
    """Run one block, under gradient checkpointing where the model asks for it."""
    if torch.is_grad_enabled() and model.gradient_checkpointing:
        return model._gradient_checkpointing_func(block, *args)
    return block(*args)
