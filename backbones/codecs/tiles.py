"""Tiles in space and in time, and what all codecs ask of a chunk.

Tiles are cut and blended as diffusers does, so that results are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from ...core.interfaces.compressor import State
from ...core.values.grid import Size3

Grid = list[list[Tensor]]


@frozen
class Tiles:
    """Square tiles over a frame from its top left; those at the right and bottom are smaller.

    Attributes:
        size: side of a tile.
        step: from a tile to the next; they share size − step.
    """

    size: int
    step: int

    def scaled(self, ratio: float) -> Tiles:
        """Return the tiles of what has `ratio` times the sides."""
        return Tiles(int(self.size * ratio), int(self.step * ratio))

    def cut(self, x: Tensor) -> Grid:
        """Return the tiles of `[..., H, W]`, row by row."""
        height, width = x.shape[-2:]
        return [
            [x[..., i : i + self.size, j : j + self.size] for j in range(0, width, self.step)]
            for i in range(0, height, self.step)
        ]

    def join(self, rows: Grid, height: int, width: int, vae: Any) -> Tensor:
        """Return `[..., height, width]` of tiles of this size, blended linearly where they overlap.

        Changes the tiles in place, as diffusers' own `blend_v` and `blend_h` of `vae` do.
        """
        shared, lines = self.size - self.step, []
        for i, row in enumerate(rows):
            line = []
            for j, tile in enumerate(row):
                tile = vae.blend_v(rows[i - 1][j], tile, shared) if i else tile
                tile = vae.blend_h(row[j - 1], tile, shared) if j else tile
                line.append(tile[..., : self.step, : self.step])
            lines.append(torch.cat(line, dim=-1))
        return torch.cat(lines, dim=-2)[..., :height, :width]


@frozen(eq=False)
class TimeTiles:
    """Tiles in time of a network that is not causal, in a stream.

    A tile reads `size` inputs after its first one and has outputs for those alone (the very first
    tile: for its first, too). Its first `blend` outputs fade in over the last of the tile before;
    `keep` of them are final as soon as the tile is full.

    Attributes:
        size: inputs of a full tile beside its first.
        step: inputs from a tile to the next.
        keep: outputs that `step` inputs make.
        blend: outputs that two tiles share.
        run: the network on one tile.
        fade: diffusers' own `blend_t`.
    """

    size: int
    step: int
    keep: int
    blend: int
    run: Callable[[Tensor], Tensor]
    fade: Callable[[Tensor, Tensor, int], Tensor]

    def push(self, chunk: Tensor, state: State | None) -> tuple[list[Tensor], State]:
        """Return the outputs that full tiles make final (maybe none), and the state after them.

        Args:
            chunk: the next inputs `[B, C, T, H, W]`.
            state: inputs and outputs that the next tile needs; None before the first chunk.
        """
        held = chunk if state is None else torch.cat([state["held"], chunk], dim=2)
        last, settled = None if state is None else state.get("last"), []
        while held.shape[2] > self.size:
            tile = self._tile(held, last)
            settled.append(tile[:, :, : self.keep + (last is None)])
            last, held = self._end(tile), held[:, :, self.step :]
        after = {"held": held.clone()}
        return settled, after if last is None else after | {"last": last.clone()}

    def rest(self, state: State) -> list[Tensor]:
        """Return the outputs of tiles that are not full, as if the video ended here."""
        held, last, parts = state["held"], state.get("last"), []
        if last is None:
            return [self.run(held)]
        while held.shape[2] > 1:
            tile = self._tile(held, last)
            parts.append(tile[:, :, : self.keep])
            last, held = self._end(tile), held[:, :, self.step :]
        return parts

    def _tile(self, held: Tensor, last: Tensor | None) -> Tensor:
        out = self.run(held[:, :, : self.size + 1])
        return out if last is None else self.fade(last, out[:, :, 1:], self.blend)

    def _end(self, tile: Tensor) -> Tensor:
        return tile[:, :, max(0, tile.shape[2] - self.blend) :]


def check_frames(chunk: Tensor, stride: int, *, first: bool) -> None:
    """Refuse a chunk of pixels that is not whole: 1 + stride·k frames at first, then stride·k.

    Raises:
        ValueError: it holds no floats, or another number of frames.
    """
    frames = chunk.shape[2]
    if not chunk.is_floating_point():
        raise ValueError(f"pixels are floats in [−1, 1], not {chunk.dtype}")
    if (frames - first) % stride or not frames:
        rule = f"the first chunk holds 1 + {stride}k" if first else f"later chunks hold {stride}k"
        raise ValueError(f"{rule} frames, not {frames}")


def check_sides(chunk: Tensor, stride: Size3) -> None:
    """Refuse frames that are no whole latent cells.

    Raises:
        ValueError: a side is no multiple of the stride.
    """
    height, width = chunk.shape[-2:]
    if height % stride.height or width % stride.width:
        raise ValueError(
            f"frames of {height}x{width} pixels are no whole latent cells: their sides must be "
            f"multiples of {stride.height} and {stride.width}"
        )


def check_latents(chunk: Tensor, channels: int) -> None:
    """Refuse latents that cannot be decoded.

    Raises:
        ValueError: the chunk holds none, or has other channels.
    """
    if chunk.shape[1] != channels or not chunk.shape[2]:
        raise ValueError(
            f"latents of {chunk.shape[1]} channels and {chunk.shape[2]} frames cannot be "
            f"decoded: {channels} channels and one frame or more"
        )
