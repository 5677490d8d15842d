"""What streaming compressors share: a window in one step, blocks of latents, a state's clock."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from ..values.grid import Geometry, Rate, Size3
from ..values.history import History
from ..values.memory import Memory, Part, grid_part, merge
from .compressor import Compressor, Length, Needs, S, State, pad_to


class Streamed(Compressor[S]):
    """A compressor whose `forward` is one `step` and what is then pending.

    The law of compressors then asks one thing only: that it does not matter how a window is cut.
    Samples of a ragged batch run in groups of equal length, so that each is as it would be alone.
    For compressors of latents: pixels are not handed on there.
    """

    def forward(self, history: History) -> Memory:
        """Return the memory of a whole window; its batch may hold different lengths."""
        if not history.ragged:
            return self._whole(history)
        lengths: list[int] = history.length.tolist()
        groups = [
            [i for i, n in enumerate(lengths) if n == length] for length in sorted(set(lengths))
        ]
        memories = [self._whole(trimmed(history.select(g), lengths[g[0]])) for g in groups]
        places = [i for group in groups for i in group]
        order = sorted(range(len(places)), key=places.__getitem__)
        return attrs.evolve(stacked(memories).select(order), size=history.size)

    def _whole(self, history: History) -> Memory:
        if not history.size.time:
            # One zero latent, so that the graph still holds every parameter.
            return attrs.evolve(emptied(self._whole(_one_latent(history))), size=history.size)
        state, settled = self.step(None, history)
        return merge([settled, self.pending(state)])


@frozen(eq=False, kw_only=True)
class Run:
    """Consecutive latents of a window, and where they stand in it.

    Attributes:
        latents: `[B, C, n, H, W]`, n may be 0.
        first: latents of the window before them.
        seen: size of the window so far.
        start: absolute latent frame of the window's first latent, `[B]`.
    """

    latents: Tensor
    first: int
    seen: Size3
    start: Tensor

    @property
    def length(self) -> Tensor:
        """The latents of each sample seen so far, `[B]`."""
        return torch.full_like(self.start, self.seen.time)


def follow(state: State | None, chunk: History) -> State:
    """Return a new state whose clock (`seen`, `start`) has taken the chunk in.

    Raises:
        ValueError: the chunk does not follow what the state has seen.
    """
    before = int(state["seen"][0]) if state else 0
    if chunk.offset != before:
        raise ValueError(f"a chunk from latent {chunk.offset} after {before} were seen")
    size = chunk.size
    seen = torch.tensor([before + size.time, size.height, size.width])
    start = state["start"] if state else chunk.start.clone()
    return {**(state or {}), "seen": seen, "start": start}


def seen_size(state: State) -> Size3:
    """Return the size of the window that a state has seen."""
    time, height, width = state["seen"].tolist()
    return Size3(time=time, height=height, width=width)


def take_blocks(state: State | None, chunk: History, period: int) -> tuple[State, Run]:
    """Return the new state, which holds the latents of the incomplete block, and those now complete.

    Latent 0 is a block of its own, the others are of `period` latents, as memory frames are.
    """
    new = follow(state, chunk)
    seen, grid = seen_size(new), _grid(period)
    first = grid.settled_latents(chunk.offset)
    ready = grid.settled_latents(seen.time) - first
    latents = joined(new.get("waiting"), chunk.latents, dim=2)
    new["waiting"] = own(latents[:, :, ready:])
    return new, Run(latents=latents[:, :, :ready], first=first, seen=seen, start=new["start"])


def waiting(state: State, period: int) -> Run:
    """Return the latents of the incomplete block; none where all blocks are complete."""
    seen = seen_size(state)
    first = _grid(period).settled_latents(seen.time)
    return Run(latents=state["waiting"], first=first, seen=seen, start=state["start"])


def _grid(period: int) -> Rate:
    return Rate(height=1, width=1, time=period)


def trimmed(history: History, length: int) -> History:
    """Return samples of one length without the padding behind them, and without pixels."""
    return attrs.evolve(
        history,
        pixels=None,
        latents=history.latents[:, :, :length],
        lr={rate: x[:, :, : rate.settled_tokens(length)] for rate, x in history.lr.items()},
        length=torch.full_like(history.length, length),
    )


def _one_latent(history: History) -> History:
    def zero(x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:2], 1, *x.shape[3:])

    return attrs.evolve(
        history,
        latents=zero(history.latents),
        lr={rate: zero(x) for rate, x in history.lr.items()},
        length=torch.ones_like(history.length),
    )


def emptied(memory: Memory) -> Memory:
    """Return a memory whose parts have no tokens but stay in the graph."""
    parts = [part.take(torch.empty(len(part.valid), 0).long()) for part in memory.parts]
    return Memory(parts=tuple(parts), size=memory.size)


def stacked(memories: Sequence[Memory]) -> Memory:
    """Return memories of several groups of samples, of the same parts, as one batch."""
    groups = zip(*(memory.parts for memory in memories), strict=True)
    return Memory(parts=tuple(_stacked(group) for group in groups))


def _stacked(parts: Sequence[Part]) -> Part:
    count = max(part.tokens.shape[1] for part in parts)
    even = [padded(part, count) for part in parts]
    return Part(
        name=parts[0].name,
        tokens=torch.cat([part.tokens for part in even]),
        positions=torch.cat([part.positions for part in even]),
        extents=torch.cat([part.extents for part in even]),
        valid=torch.cat([part.valid for part in even]),
        features={name: torch.cat([p.features[name] for p in even]) for name in parts[0].features},
    )


def padded(part: Part, count: int) -> Part:
    """Return a part of `count` tokens: behind its own stand zeros that are not valid."""
    more = (0, count - part.tokens.shape[1])
    return Part(
        name=part.name,
        tokens=F.pad(part.tokens, (0, 0, *more)),
        positions=F.pad(part.positions, (0, 0, *more)),
        extents=F.pad(part.extents, (0, 0, *more), value=1.0),
        valid=F.pad(part.valid, more),
        features={name: F.pad(x, (0, 0, *more)) for name, x in part.features.items()},
    )


def joined(before: Tensor | None, new: Tensor, dim: int) -> Tensor:
    """Return `new` behind `before`."""
    return new if before is None else torch.cat([before, new], dim=dim)


def own(x: Tensor) -> Tensor:
    """Return a copy with its own memory: a slice would keep alive all that it was cut from."""
    return x.clone(memory_format=torch.contiguous_format)


# ⟦core/cells.py⟧ The shortest way to a compressor of one's own: say what one memory cell becomes.


class CellCompressor(Streamed[S]):
    """A compressor whose every token is made of the latents of its own cell, and of nothing else.

    Subclasses name their tokens in `part` and answer `encode`; streaming, places, ragged batches
    and context length follow from the rate, which the spec holds in its field `rate`. See
    CONTRIBUTING for a whole one.
    """

    part: ClassVar[str]

    @abstractmethod
    def encode(self, cells: Tensor) -> Tensor:
        """Return the tokens `[M, D]` of cells of latents.

        Args:
            cells: `[M, C, n, h, w]`: C channels, n latent frames (as many as the rate says, fewer
                in a block that is not complete, one in the first), h × w latents of the rate times
                the DiT's patch. Odd sizes are padded by repeating the last row and column.
        """

    @classmethod
    def rate(cls, spec: S) -> Rate:
        """Return the compression rate of a spec: its field `rate`."""
        found: Rate = getattr(spec, "rate")  # noqa: B009  # S says nothing of its fields
        return found

    @classmethod
    def needs(cls, spec: S) -> Needs:
        """Return the full-size latents."""
        return Needs()

    @classmethod
    def context_length(cls, spec: S, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens: the cells of the token grid."""
        return Length(tokens=cls.rate(spec).token_grid(size, geometry.patch).cells)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens of the cells that it completed."""
        new, run = take_blocks(state, chunk, self.rate(self.spec).time)
        return new, self._memory(run)

    def pending(self, state: State) -> Memory:
        """Return the tokens of the cells that are not complete, so far."""
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
        """Return latents `[B, C, m·n, H, W]` by block length: the first, whole ones, what is left."""
        step, alone = self.rate(self.spec).time, 0 if run.first else 1
        first, rest = run.latents[:, :, :alone], run.latents[:, :, alone:]
        whole = rest.shape[2] // step * step
        found = [(first, 1), (rest[:, :, :whole], step), (rest[:, :, whole:], None)]
        return [_split(x, n or x.shape[2]) for x, n in found if x.shape[2]]

    def _frames(self, blocks: Tensor) -> Tensor:
        """Return the tokens `[B, m, S, D]` of blocks `[B, m, C, n, H, W]`."""
        rate, patch = self.rate(self.spec), self.geometry.patch
        high, wide = rate.height * patch.height, rate.width * patch.width
        batch, count = blocks.shape[:2]
        padded = pad_to(blocks.flatten(0, 1), high, wide)  # [B·m, C, n, H, W]
        cells = padded.unflatten(4, (-1, wide)).unflatten(3, (-1, high))
        cells = cells.permute(0, 3, 5, 1, 2, 4, 6)  # [B·m, rows, columns, C, n, h, w]
        tokens: Tensor = self.encode(cells.flatten(0, 2)).unflatten(0, (batch, count, -1))
        return tokens


def _split(latents: Tensor, step: int) -> Tensor:
    """Return blocks `[B, m, C, step, H, W]` of latents `[B, C, m·step, H, W]`."""
    blocks: Tensor = latents.unflatten(2, (-1, step)).movedim(2, 1)
    return blocks
