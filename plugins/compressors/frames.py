"""Frames that fill blocks and cells: the last one repeated, and pixels checked against latents."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from ...core.values.grid import Size3
from ...core.values.history import History
from ...core.values.shapes import Bytes


def repeat_ends(frames: Tensor, *, before: int = 0, after: int = 0) -> Tensor:
    """Return frames `[B, C, T, H, W]` with the first one repeated ahead, the last one behind."""
    if not (before or after):
        return frames
    first = frames[:, :, :1].expand(-1, -1, before, -1, -1)
    last = frames[:, :, -1:].expand(-1, -1, after, -1, -1)
    return torch.cat([first, frames, last], dim=2)


def repeat_own_last(latents: Tensor, length: Tensor, total: int) -> Tensor:
    """Return `total` frames: of each sample its first `length`, then its last one repeated.

    A sample without frames gives zeros.

    Args:
        latents: `[B, C, T, H, W]`.
        length: real frames of each sample, `[B]`.
        total: frames to return, T or more.
    """
    batch, channels, time, height, width = latents.shape
    if time == 0:
        return latents.new_zeros(batch, channels, total, height, width)
    if bool((length == time).all()):
        return repeat_ends(latents, after=total - time)
    index = torch.minimum(torch.arange(total)[None], length.cpu()[:, None] - 1).clamp(min=0)
    samples = torch.arange(batch)[:, None]
    frames = rearrange(latents, "b c t h w -> b t c h w")[samples, index]
    empty = (length == 0).to(latents.device)[:, None, None, None, None]
    return rearrange(frames, "b t c h w -> b c t h w").masked_fill(empty, 0.0)


def checked_pixels(history: History, stride: Size3, name: str) -> Bytes:
    """Return the pixels of a window or chunk, as they are.

    Args:
        history: a window or chunk.
        stride: pixels to a latent cell.
        name: of the compressor, for messages.

    Raises:
        ValueError: there are none, or they are not those of the latents.
    """
    pixels, size = history.pixels, history.size
    if pixels is None:
        raise ValueError(f"{name} needs the pixels; the history has none")
    count = stride.time * size.time - (stride.time - 1 if history.offset == 0 else 0)
    rows, columns = size.height * stride.height, size.width * stride.width
    if size.time and (
        pixels.shape[2] != count or pixels.shape[3] > rows or pixels.shape[4] > columns
    ):
        actual = "×".join(map(str, pixels.shape[2:]))
        raise ValueError(f"latents {size} come with {count}×{rows}×{columns} pixels, not {actual}")
    return pixels


def fill_frames(pixels: Bytes, rows: int, columns: int) -> Bytes:
    """Return frames of `rows` × `columns`; where some are missing, the last one is repeated."""
    down = [min(i, pixels.shape[3] - 1) for i in range(rows)]
    across = [min(i, pixels.shape[4] - 1) for i in range(columns)]
    if len(down) == pixels.shape[3] and len(across) == pixels.shape[4]:
        return pixels
    return pixels[..., down, :][..., across]
