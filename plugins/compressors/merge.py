"""Token merging: the DiT's own tokens, similar neighbours in time and space joined into means."""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ...core.compressor import State
from ...core.fit import Fit, Length, Needs
from ...core.grid import Geometry, Rate, Size3, ceil_div
from ...core.history import History
from ...core.memory import Memory, Part, merge
from ...core.streams import Run, Streamed, take_blocks, waiting
from ..compressor_specs import Merge
from .merge_regions import boxes, means, regions, tokens_first
from .streams_tokens import OwnTokens

AT_ONCE = 2**17  # cells whose regions are sought together: bounds what the search needs
EACH = Rate(height=1, width=1, time=1)


class MergeCompressor(Streamed[Merge]):
    """One part, `merge`: each token is the mean of the DiT's tokens of a connected region.

    Regions lie within a block of latents (latent 0 is one of its own), which settles when it is
    complete; the incomplete block is merged anew with each latent. A token covers the box around
    its region and sits in the middle of it; tokens stand in the order of the last latent that they
    cover. With `threshold` the samples of a batch may differ in length: padding goes last.

    The state holds the latents of the incomplete block.
    """

    def __init__(self, spec: Merge, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.own = OwnTokens(fit)

    @classmethod
    def needs(cls, spec: Merge) -> Needs:
        """Give the full-size latents."""
        return Needs()

    @classmethod
    def context_length(cls, spec: Merge, geometry: Geometry, size: Size3) -> Length:
        """Give the exact number of tokens; with `threshold` a bound: nothing may merge."""
        cells = EACH.token_grid(size, geometry.patch)
        if spec.threshold is not None:
            return Length(tokens=cells.cells, exact=False)
        found = blocks(spec.block, 0, size.time)
        kept = (
            b.count * budget(spec, geometry, attrs.evolve(cells, time=b.latents)) for b in found
        )
        return Length(tokens=sum(kept))

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens of the blocks that it completed."""
        new, run = take_blocks(state, chunk, self.spec.block)
        return new, self._memory(run)

    def pending(self, state: State) -> Memory:
        """Give the tokens of the incomplete block, so far."""
        return self._memory(waiting(state, self.spec.block))

    def _memory(self, run: Run) -> Memory:
        count = run.latents.shape[2]
        parts = [self._part(run, b) for b in blocks(self.spec.block, run.first, count)]
        return merge([Memory(size=run.seen), *(Memory(parts=(part,)) for part in parts)])

    def _part(self, run: Run, at: Blocks) -> Part:
        """Give the tokens of equal blocks."""
        latents = run.latents.narrow(2, at.first - run.first, at.count * at.latents)
        patches = self.own.cut(latents)
        grid = Size3(time=at.latents, height=patches.shape[2], width=patches.shape[3])
        x = patches.reshape(-1, grid.cells, patches.shape[4])  # [B·count, N, F]
        label = self._regions(x, grid)
        low, high = boxes(label, grid, at.count)  # [B, count·N, 3]
        order, valid = tokens_first(label, high[..., 0])
        merged = means(x, label).reshape(*high.shape[:2], -1)
        first, last = (_picked(x, order).cpu().double() for x in (low, high))
        origin = torch.zeros(len(run.start), 1, 3, dtype=torch.float64)
        origin[:, 0, 0] = run.start + at.first
        padding = ~valid.cpu()[..., None]
        return Part(
            name="merge",
            tokens=self.own.project(_picked(merged, order)),
            positions=((first + last) / 2 + origin).masked_fill(padding, 0.0),
            extents=(last - first + 1).masked_fill(padding, 1.0),
            valid=valid.cpu(),
        )

    def _regions(self, x: Tensor, grid: Size3) -> Tensor:
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        keep = budget(self.spec, self.geometry, grid)
        pieces = wide.split(max(1, AT_ONCE // grid.cells))
        found = [regions(p, grid, keep=keep, threshold=self.spec.threshold) for p in pieces]
        return torch.cat(found)


@frozen(kw_only=True)
class Blocks:
    """`count` blocks of `latents` each, from latent `first` of the window on."""

    first: int
    count: int
    latents: int


def blocks(period: int, first: int, count: int) -> list[Blocks]:
    """Give the blocks of `count` latents from `first` on, equal ones together, in order."""
    return list(_blocks(period, first, first + count))


def _blocks(period: int, first: int, end: int) -> Iterator[Blocks]:
    if first == 0 < end:
        yield Blocks(first=0, count=1, latents=1)
        first = 1
    whole, rest = divmod(max(end - first, 0), period)
    if whole:
        yield Blocks(first=first, count=whole, latents=period)
    if rest:
        yield Blocks(first=first + whole * period, count=1, latents=rest)


def budget(spec: Merge, geometry: Geometry, block: Size3) -> int:
    """Give the tokens that a block of so many latents, rows and columns of patches may keep.

    With `threshold` that is one: similarity alone says where merging ends.
    """
    if spec.rate is not None:
        rate = spec.rate
        rows, columns = ceil_div(block.height, rate.height), ceil_div(block.width, rate.width)
        return ceil_div(block.time, rate.time) * rows * columns
    if spec.per_second is None:
        return 1
    wanted = spec.per_second * block.time * geometry.vae_stride.time / geometry.fps
    return min(block.cells, max(1, math.ceil(round(wanted, 6))))


def _picked(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[2]))
