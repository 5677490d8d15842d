"""The shortest way to a compressor of one's own: say what one memory cell becomes."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .compressor import S, State
from .fit import Length, Needs, pad_to
from .grid import Geometry, Rate, Size3
from .history import History
from .memory import Memory
from .parts import grid_part
from .streams import Run, Streamed, take_blocks, waiting


class CellCompressor(Streamed[S]):
    """A compressor whose every token is made of the latents of its own cell, and of nothing else.

    Subclasses name their tokens in `part` and answer `encode`; streaming, places, ragged batches
    and context length follow from the rate, which the spec holds in its field `rate`. See
    CONTRIBUTING for a whole one.
    """

    part: ClassVar[str]

    @abstractmethod
    def encode(self, cells: Tensor) -> Tensor:
        """Give the tokens `[M, D]` of cells of latents.

        Args:
            cells: `[M, C, n, h, w]`: C channels, n latent frames (as many as the rate says, fewer
                in a block that is not complete, one in the first), h × w latents of the rate times
                the DiT's patch. Odd sizes are padded by repeating the last row and column.
        """

    @classmethod
    def rate(cls, spec: S) -> Rate:
        """Give the compression rate of a spec: its field `rate`."""
        found: Rate = getattr(spec, "rate")  # noqa: B009  # S says nothing of its fields
        return found

    @classmethod
    def needs(cls, spec: S) -> Needs:
        """Give the full-size latents."""
        return Needs()

    @classmethod
    def context_length(cls, spec: S, geometry: Geometry, size: Size3) -> Length:
        """Give the exact number of tokens: the cells of the token grid."""
        return Length(tokens=cls.rate(spec).token_grid(size, geometry.patch).cells)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens of the cells that it completed."""
        new, run = take_blocks(state, chunk, self.rate(self.spec).time)
        return new, self._memory(run)

    def pending(self, state: State) -> Memory:
        """Give the tokens of the cells that are not complete, so far."""
        return self._memory(waiting(state, self.rate(self.spec).time))

    def _memory(self, run: Run) -> Memory:
        if not run.latents.shape[2]:
            return Memory(size=run.seen)
        rate, patch = self.rate(self.spec), self.geometry.patch
        tokens = torch.cat([self._frames(block) for block in self._blocks(run)], dim=1)
        part = grid_part(
            f"{self.part}-{rate}", tokens, rate=rate, size=run.seen, patch=patch,
            grid=rate.token_grid(run.seen, patch), start=run.start, length=run.length,
            skip=rate.settled_tokens(run.first),
        )  # fmt: skip
        return Memory(parts=(part,), size=run.seen)

    def _blocks(self, run: Run) -> list[Tensor]:
        """Give latents `[B, C, m·n, H, W]` by block length: the first, whole ones, what is left."""
        step, alone = self.rate(self.spec).time, 0 if run.first else 1
        first, rest = run.latents[:, :, :alone], run.latents[:, :, alone:]
        whole = rest.shape[2] // step * step
        found = [(first, 1), (rest[:, :, :whole], step), (rest[:, :, whole:], None)]
        return [_split(x, n or x.shape[2]) for x, n in found if x.shape[2]]

    def _frames(self, blocks: Tensor) -> Tensor:
        """Give the tokens `[B, m, S, D]` of blocks `[B, m, C, n, H, W]`."""
        rate, patch = self.rate(self.spec), self.geometry.patch
        high, wide = rate.height * patch.height, rate.width * patch.width
        batch, count = blocks.shape[:2]
        padded = pad_to(blocks.flatten(0, 1), high, wide)  # [B·m, C, n, H, W]
        cells = padded.unflatten(4, (-1, wide)).unflatten(3, (-1, high))
        cells = cells.permute(0, 3, 5, 1, 2, 4, 6)  # [B·m, rows, columns, C, n, h, w]
        tokens: Tensor = self.encode(cells.flatten(0, 2)).unflatten(0, (batch, count, -1))
        return tokens


def _split(latents: Tensor, step: int) -> Tensor:
    """Give blocks `[B, m, C, step, H, W]` of latents `[B, C, m·step, H, W]`."""
    blocks: Tensor = latents.unflatten(2, (-1, step)).movedim(2, 1)
    return blocks
