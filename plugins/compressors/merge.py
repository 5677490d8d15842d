"""Token merging: the DiT's own tokens, similar neighbours in time and space joined into means.

The compressor comes first, then the search for regions: neighbours on a grid of cells join, those
first that lose least.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs
import torch
from attrs import define, frozen
from einops import rearrange, repeat
from torch import Tensor

from ...core.interfaces.compressor import Fit, Length, Needs, State
from ...core.interfaces.streaming import LatentSpan, Streamed, incomplete_block, take_blocks
from ...core.values.grid import Geometry, Size3, ceil_div
from ...core.values.history import History
from ...core.values.memory import Memory, Part, merge
from .specs import Merge
from .tokens import UNCOMPRESSED, OwnTokens

AT_ONCE = 2**17  # cells whose regions are sought together: bounds what the search needs
OCTAVE = 16  # losses count as equal within 1/16 of an octave, so that rounding decides nothing
FLOOR = 2.0**-20  # of a loss, in latent values squared: below it areas are flat
LEVELS = 2**11  # more than there are losses between FLOOR and any that occurs
SIZES = 2**20  # more than a region has cells
TIES = 2**28  # more than there are edges
SHUFFLE = 2654435761  # odd, so that no two edges draw the same lot (Knuth's multiplicative hash)
DONE = -1  # key of an edge that must not join


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
        """Return the full-size latents."""
        return Needs()

    @classmethod
    def context_length(cls, spec: Merge, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens; with `threshold` a bound: nothing may merge."""
        cells = UNCOMPRESSED.token_grid(size, geometry.patch)
        if spec.threshold is not None:
            return Length(tokens=cells.cells, exact=False)
        tokens = (
            blocks.count * budget(spec, geometry, attrs.evolve(cells, time=blocks.latents))
            for blocks in equal_blocks(spec.block, 0, size.time)
        )
        return Length(tokens=sum(tokens))

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return the tokens of the blocks that it completed."""
        new, complete = take_blocks(state, chunk, self.spec.block)
        return new, self._memory(complete)

    def pending(self, state: State) -> Memory:
        """Return the tokens of the incomplete block, so far."""
        return self._memory(incomplete_block(state, self.spec.block))

    def _memory(self, span: LatentSpan) -> Memory:
        end = span.first + span.latents.shape[2]
        parts = [self._part(span, b) for b in equal_blocks(self.spec.block, span.first, end)]
        return merge([Memory(size=span.seen), *(Memory(parts=(part,)) for part in parts)])

    def _part(self, span: LatentSpan, blocks: EqualBlocks) -> Part:
        """Return the tokens of equal blocks."""
        count = blocks.count
        latents = span.latents.narrow(2, blocks.first - span.first, count * blocks.latents)
        patches = self.own.cut(latents)
        grid = Size3(time=blocks.latents, height=patches.shape[2], width=patches.shape[3])
        x = rearrange(patches, "b (count t) h w f -> (b count) (t h w) f", count=count)
        label = self._regions(x, grid)
        low, high = boxes(label, grid, count)  # [B, count·N, 3]
        order, valid = tokens_first(label, high[..., 0])
        merged = rearrange(means(x, label), "(b count) n f -> b (count n) f", count=count)
        first, last = (_picked(x, order).cpu().double() for x in (low, high))
        origin = torch.zeros(len(span.start), 1, 3, dtype=torch.float64)
        origin[:, 0, 0] = span.start + blocks.first
        padding = ~valid.cpu()[..., None]
        return Part(
            name="merge",
            tokens=self.own.project(_picked(merged, order)),
            positions=((first + last) / 2 + origin).masked_fill(padding, 0.0),
            extents=(last - first + 1).masked_fill(padding, 1.0),
            valid=valid.cpu(),
        )

    def _regions(self, x: Tensor, grid: Size3) -> Tensor:
        """Return the region of every cell of grids `[K, N, F]`, `[K, N]`, a few grids at a time."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        keep = budget(self.spec, self.geometry, grid)
        pieces = wide.split(max(1, AT_ONCE // grid.cells))
        labels = [regions(p, grid, keep=keep, threshold=self.spec.threshold) for p in pieces]
        return torch.cat(labels)


@frozen(kw_only=True)
class EqualBlocks:
    """`count` blocks of `latents` each, from latent `first` of the window on."""

    first: int
    count: int
    latents: int


def equal_blocks(period: int, first: int, end: int) -> Iterator[EqualBlocks]:
    """Yield the blocks of latents first … end − 1, equal ones together, in order."""
    if first == 0 < end:
        yield EqualBlocks(first=0, count=1, latents=1)
        first = 1
    whole, rest = divmod(max(end - first, 0), period)
    if whole:
        yield EqualBlocks(first=first, count=whole, latents=period)
    if rest:
        yield EqualBlocks(first=first + whole * period, count=1, latents=rest)


def budget(spec: Merge, geometry: Geometry, block: Size3) -> int:
    """Return the tokens that a block of so many latents, rows and columns of patches may keep.

    With `threshold` that is one: similarity alone says where merging ends.
    """
    if spec.rate is not None:
        rate = spec.rate
        rows, columns = ceil_div(block.height, rate.height), ceil_div(block.width, rate.width)
        return ceil_div(block.time, rate.time) * rows * columns
    if spec.per_second is None:
        return 1
    tokens = spec.per_second * block.time * geometry.vae_stride.time / geometry.fps
    return min(block.cells, max(1, math.ceil(round(tokens, 6))))


def _picked(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, repeat(order, "b n -> b n f", f=x.shape[2]))


def neighbours(grid: Size3) -> Tensor:
    """Return all pairs of neighbouring cells of a grid, int64 `[2, E]`; time is slowest."""
    cells = torch.arange(grid.cells).view(grid.time, grid.height, grid.width)
    pairs = [
        torch.stack([cells.narrow(d, 0, n - 1).flatten(), cells.narrow(d, 1, n - 1).flatten()])
        for d, n in enumerate(cells.shape)
    ]
    return torch.cat(pairs, dim=1)


@torch.no_grad()
def regions(x: Tensor, grid: Size3, *, keep: int, threshold: float | None = None) -> Tensor:
    """Return the region of every cell, named by its first cell, int64 `[K, N]`.

    In each round two regions join where each is the other's best neighbour, best pairs first;
    rounds go on until `keep` regions are left. The best is the one that loses least: the rise of
    the squared error of all cells when two regions get a common mean, n·m / (n + m) · |a − b|²
    (Ward's criterion); then the smaller, then by lot. A region is connected, as two join only
    across a face of their cells.

    Args:
        x: K grids of N = time × height × width cells, `[K, N, F]`, float32 or wider.
        grid: their shape.
        keep: regions that are left of each grid, ≥ 1.
        threshold: greatest difference (RMS over F) of two means that join; None: any.
    """
    ends = neighbours(grid).to(x.device)
    lot = torch.arange(ends.shape[1], device=x.device) * SHUFFLE % TIES
    search = _Search.of(x, ends)
    left = torch.full((len(x), 1), grid.cells - keep, device=x.device)
    while bool((left > 0).any()):
        one, two = search.label[:, ends[0]], search.label[:, ends[1]]
        barred = one == two
        if threshold is not None:
            barred = barred | (search.apart > threshold**2)
        key = (search.preference(one, two) + lot).masked_fill(barred, DONE)
        chosen = best_pairs(key, one, two, left, grid.cells)
        if not chosen.any():
            break
        left = left - chosen.sum(dim=1, keepdim=True)
        search.join(chosen, one, two)
    return search.label


@define(eq=False)
class _Search:
    """The regions so far: each has its mean and size at its first cell, each edge its difference.

    Attributes:
        ends: the cells at both ends of the edges, `[2, E]`.
        label: `[K, N]`.
        mean: `[K, N, F]`.
        size: `[K, N]`.
        apart: mean squared difference of the means at both ends of the edges, `[K, E]`.
    """

    ends: Tensor
    label: Tensor
    mean: Tensor
    size: Tensor
    apart: Tensor

    @classmethod
    def of(cls, x: Tensor, ends: Tensor) -> _Search:
        """Return the search at its start: every cell is a region."""
        label = torch.arange(x.shape[1], device=x.device).repeat(len(x), 1)
        apart = (x[:, ends[0]] - x[:, ends[1]]).square().mean(dim=2)
        return cls(ends, label, x.clone(), torch.ones_like(label), apart)

    def preference(self, one: Tensor, two: Tensor) -> Tensor:
        """Return how good it is to join regions `[K, E]`, in multiples of TIES; more is better."""
        n, m = self.size.gather(1, one), self.size.gather(1, two)
        loss = (n * m / (n + m) * self.apart).clamp(min=FLOOR)
        level = (OCTAVE * (loss / FLOOR).log2()).round().long().clamp(max=LEVELS - 1)
        small = SIZES - 1 - (n + m).clamp(max=SIZES - 1)
        return ((LEVELS - 1 - level) * SIZES + small) * TIES

    def join(self, chosen: Tensor, one: Tensor, two: Tensor) -> None:
        """Join the regions at the ends of the chosen edges, each under the lower name."""
        grid, edge = chosen.nonzero(as_tuple=True)
        low, high = (f(one[grid, edge], two[grid, edge]) for f in (torch.minimum, torch.maximum))
        n, m = self.size[grid, low], self.size[grid, high]
        sums = n[:, None] * self.mean[grid, low] + m[:, None] * self.mean[grid, high]
        self.mean[grid, low] = sums / (n + m)[:, None]
        self.size[grid, low] = n + m
        target = torch.arange(self.label.shape[1], device=low.device).repeat(len(self.label), 1)
        target[grid, high] = low
        self.label = target.gather(1, self.label)
        self._refresh(grid, low)

    def _refresh(self, grid: Tensor, first: Tensor) -> None:
        """Renew the differences across the edges of the regions `first` of the grids `grid`."""
        new = torch.zeros_like(self.label, dtype=torch.bool)
        new[grid, first] = True
        one, two = (self.label[:, end] for end in self.ends)
        stale = (one != two) & (new.gather(1, one) | new.gather(1, two))
        row, edge = stale.nonzero(as_tuple=True)
        gap = self.mean[row, one[row, edge]] - self.mean[row, two[row, edge]]
        self.apart[row, edge] = gap.square().mean(dim=1)


def best_pairs(key: Tensor, one: Tensor, two: Tensor, left: Tensor, cells: int) -> Tensor:
    """Return the edges whose two regions are each other's best, at most `left` of each grid.

    Args:
        key: of each edge, `[K, E]`, the greater the better; DONE never joins.
        one: region at one end, `[K, E]`.
        two: region at the other end.
        left: how many regions are still too many, `[K, 1]`.
        cells: N.
    """
    best = key.new_full((len(key), cells), DONE)
    best = best.scatter_reduce(1, one, key, "amax").scatter_reduce(1, two, key, "amax")
    mutual = (key > DONE) & (best.gather(1, one) == key) & (best.gather(1, two) == key)
    rank = torch.where(mutual, key, DONE).argsort(dim=1, descending=True).argsort(dim=1)
    return mutual & (rank < left)


def means(x: Tensor, label: Tensor) -> Tensor:
    """Return the mean of each region at its first cell, `[K, N, F]`; zeros elsewhere."""
    size = torch.zeros_like(label).scatter_add(1, label, torch.ones_like(label))
    total = torch.zeros_like(x).scatter_add(1, repeat(label, "k n -> k n f", f=x.shape[2]), x)
    return total / size.clamp(min=1)[..., None]


def boxes(label: Tensor, grid: Size3, count: int) -> tuple[Tensor, Tensor]:
    """Return first and last (time, row, column) of the box around each region, at its first cell.

    Args:
        label: of B · count grids, one behind the other in time, `[B·count, N]`.
        grid: the shape of one.
        count: grids of a sample.

    Returns:
        Two of int64 `[B, count·N, 3]`, time counted from the sample's first grid.
    """
    sides = (grid.time, grid.height, grid.width)
    cell = torch.cartesian_prod(*(torch.arange(n) for n in sides)).to(label.device)
    cell = repeat(cell, "n place -> k n place", k=len(label))
    index = repeat(label, "k n -> k n place", place=3)
    ends = [cell.scatter_reduce(1, index, cell, how) for how in ("amin", "amax")]
    later = torch.zeros(count, 1, 3, dtype=torch.int64, device=label.device)
    later[:, 0, 0] = torch.arange(count) * grid.time
    low, high = (rearrange(x, "(b c) n place -> b c n place", c=count) + later for x in ends)
    return low.flatten(1, 2), high.flatten(1, 2)


def tokens_first(label: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the first cells of regions stand, by the last latent they cover, and validity.

    Args:
        label: `[B·count, N]`.
        last: last latent of the region of each first cell, `[B, count·N]`.

    Returns:
        Order and validity, both `[B, M]`: M is what the fullest sample needs of each grid, so that
        it does not matter how many grids are looked at together. Padding goes last.
    """
    first = label == torch.arange(label.shape[1], device=label.device)
    tokens = rearrange(first.sum(dim=1), "(b count) -> b count", b=len(last))
    total = int(tokens.max(dim=0).values.sum())
    place = torch.arange(last.shape[1], device=last.device)
    late = torch.iinfo(torch.int64).max
    key = torch.where(first.view_as(last), last * last.shape[1] + place, late)
    valid = torch.arange(total, device=last.device) < tokens.sum(dim=1, keepdim=True)
    return key.argsort(dim=1)[:, :total], valid
