"""What streaming compressors share: a window in one step, blocks of latents, a state's clock."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from .compressor import Compressor, S, State
from .grid import Rate, Size3
from .history import History
from .memory import Memory, Part, merge


class Streamed(Compressor[S]):
    """A compressor whose `forward` is one `step` and what is then pending.

    The law of compressors then asks one thing only: that it does not matter how a window is cut.
    Samples of a ragged batch run in groups of equal length, so that each is as it would be alone.
    For compressors of latents: pixels are not handed on there.
    """

    def forward(self, history: History) -> Memory:
        """Give the memory of a whole window; its batch may hold different lengths."""
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
    """Give a new state whose clock (`seen`, `start`) has taken the chunk in.

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
    """Give the size of the window that a state has seen."""
    time, height, width = state["seen"].tolist()
    return Size3(time=time, height=height, width=width)


def take_blocks(state: State | None, chunk: History, period: int) -> tuple[State, Run]:
    """Give the new state, which holds the latents of the incomplete block, and those now complete.

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
    """Give the latents of the incomplete block; none where all blocks are complete."""
    seen = seen_size(state)
    first = _grid(period).settled_latents(seen.time)
    return Run(latents=state["waiting"], first=first, seen=seen, start=state["start"])


def _grid(period: int) -> Rate:
    return Rate(height=1, width=1, time=period)


def trimmed(history: History, length: int) -> History:
    """Give samples of one length without the padding behind them, and without pixels."""
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
    """Give a memory whose parts have no tokens but stay in the graph."""
    parts = [part.take(torch.empty(len(part.valid), 0).long()) for part in memory.parts]
    return Memory(parts=tuple(parts), size=memory.size)


def stacked(memories: Sequence[Memory]) -> Memory:
    """Give memories of several groups of samples, of the same parts, as one batch."""
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
    """Give a part of `count` tokens: behind its own stand zeros that are not valid."""
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
    """Give `new` behind `before`."""
    return new if before is None else torch.cat([before, new], dim=dim)


def own(x: Tensor) -> Tensor:
    """Give a copy with its own memory: a slice would keep alive all that it was cut from."""
    return x.clone(memory_format=torch.contiguous_format)
