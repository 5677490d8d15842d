"""Bases and helpers for streaming compressors: write less than `Compressor` asks for.

From the shortest way to the longest:

- `CellCompressor`: say what one memory cell becomes (CONTRIBUTING has a whole one);
- `GridCompressor`: make the tokens of blocks of latents, for a memory on a regular grid;
- `Streamed`: answer `step` and `pending`; `forward` follows;
- `TwoPartStep`: answer `compute`, what a step does to tensors, and `place`, what it counts; a GPU
  can then replay it as one graph (`longtake.authors.GraphedStep`);
- `Compressor` itself, with the functions below: `advance` keeps count of what a state has seen,
  `take_blocks` and `incomplete_block` hold latents back until their block is complete.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, TypeAlias

import attrs
import torch
from attrs import frozen
from einops import rearrange
from torch import Tensor

from ..values.grid import Geometry, Rate, Rounding, Size3
from ..values.history import History
from ..values.memory import Memory, grid_part, merge, stack
from .compressor import Compressor, Length, Needs, S, State, pad_to

Encoded: TypeAlias = Tensor | tuple[Tensor, Mapping[str, Tensor]]  # tokens; their features by name


class Streamed(Compressor[S]):
    """A compressor whose `forward` is one `step` and what is then pending.

    The law of compressors then asks one thing only: that it does not matter how a window is cut.
    Samples of a ragged batch run in groups of equal length, so that each is as it would be alone.
    For compressors of latents: in a ragged batch they get no pixels.
    """

    def forward(self, history: History) -> Memory:
        """Return the memory of a whole window; its batch may hold different lengths."""
        if not history.ragged:
            return self._of_equal_lengths(history)
        lengths: list[int] = history.length.tolist()
        groups = [[i for i, n in enumerate(lengths) if n == one] for one in sorted(set(lengths))]
        memories = [
            self._of_equal_lengths(_trimmed(history.select(group), lengths[group[0]]))
            for group in groups
        ]
        places = [i for group in groups for i in group]
        order = sorted(range(len(places)), key=places.__getitem__)
        same_parts = zip(*(memory.parts for memory in memories), strict=True)
        parts = tuple(stack(parts).select(order) for parts in same_parts)
        return Memory(parts=parts, size=history.size)

    def _of_equal_lengths(self, history: History) -> Memory:
        if not history.size.time:
            # One zero latent, so that the graph still holds every parameter.
            one = self._of_equal_lengths(_one_latent(history))
            return attrs.evolve(one.without_tokens(), size=history.size)
        state, settled = self.step(None, history)
        return merge([settled, self.pending(state)])


def _trimmed(history: History, length: int) -> History:
    """Return samples of one length without the padding behind them, and without pixels."""
    return attrs.evolve(
        history,
        pixels=None,
        latents=history.latents[:, :, :length],
        lr={rate: x[:, :, : rate.settled_tokens(length)] for rate, x in history.lr.items()},
        length=torch.full_like(history.length, length),
    )


def _one_latent(history: History) -> History:
    """Return a history of one latent, all zero."""

    def zero(x: Tensor) -> Tensor:
        return x.new_zeros(*x.shape[:2], 1, *x.shape[3:])

    return attrs.evolve(
        history,
        latents=zero(history.latents),
        lr={rate: zero(x) for rate, x in history.lr.items()},
        length=torch.ones_like(history.length),
    )


class TwoPartStep(Compressor[S]):
    """A compressor whose step is work on tensors first, then counting on the host.

    With a steady state, chunks of one length then ask for the same work on other numbers, and
    `GraphedStep` replays it.
    """

    @abstractmethod
    def compute(self, state: State, chunk: History) -> tuple[State, dict[str, Tensor]]:
        """Return a state that has taken the chunk, and by name the tensors of what has settled.

        What is done depends on shapes and on `chunk.offset` by whole blocks only, never on values;
        nothing waits for the device. The state given stays as it is.

        Args:
            state: after `advance`, so that `seen` counts the chunk, too.
            chunk: the latents, with what travels with them.
        """

    @abstractmethod
    def place(self, state: State, chunk: History, settled: Mapping[str, Tensor]) -> Memory:
        """Return the memory of what has settled; arguments as of `compute`, and what it made."""

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return the tokens of the blocks that it completed.

        Raises:
            ValueError: the chunk does not follow what the state has seen.
        """
        new, settled = self.compute(advance(state, chunk), chunk)
        return new, self.place(new, chunk, settled)


class GridCompressor(Streamed[S]):
    """A compressor whose tokens stand on the grid of memory frames of its spec's `rate`.

    Subclasses name their part in `part` (`<part>-<rate>` in memory) and answer `tokens`;
    streaming, places, ragged batches and context length follow. The state holds the latents that
    complete no block, fewer than the time rate.
    """

    part: ClassVar[str]

    @abstractmethod
    def tokens(self, span: LatentSpan) -> Encoded:
        """Return the tokens `[B, T', S, D]` of T' blocks of latents, S = rows × columns of each.

        Or a pair: tokens, and their features `[B, T', S, F]` by the names of `feature_widths`.

        Args:
            span: at least one latent. Latent 0 of a window is a block of its own, the others stand
                in blocks of as many as the time rate, of which the last may be incomplete.
        """

    @classmethod
    def rate(cls, spec: S) -> Rate:
        """Return the compression rate of a spec: its field `rate`."""
        rate: Rate = getattr(spec, "rate")  # noqa: B009  # S says nothing of its fields
        return rate

    @classmethod
    def needs(cls, spec: S) -> Needs:
        """Return the full-size latents."""
        return Needs()

    @classmethod
    def feature_widths(cls, spec: S) -> dict[str, int]:
        """Return the width F of each feature of the tokens, by its name; here there are none."""
        return {}

    @classmethod
    def features(cls, spec: S) -> dict[str, int]:
        """Return the widths of the features, by `part.feature`."""
        part = f"{cls.part}-{cls.rate(spec)}"
        return {f"{part}.{name}": width for name, width in cls.feature_widths(spec).items()}

    @classmethod
    def context_length(cls, spec: S, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens: the cells of the token grid."""
        return Length(tokens=cls.rate(spec).token_grid(size, geometry.patch).cells)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return the tokens of the blocks that it completed."""
        new, complete = take_blocks(state, chunk, self.rate(self.spec).time)
        return new, self._memory(complete)

    def pending(self, state: State) -> Memory:
        """Return the tokens of the block that is not complete, so far."""
        return self._memory(incomplete_block(state, self.rate(self.spec).time))

    def _memory(self, span: LatentSpan) -> Memory:
        if not span.latents.shape[2]:
            return Memory(size=span.seen)
        rate = self.rate(self.spec)
        tokens, features = _pair(self.tokens(span))
        return span.memory(f"{self.part}-{rate}", tokens, rate, self.geometry.patch, features)


def _pair(encoded: Encoded) -> tuple[Tensor, Mapping[str, Tensor]]:
    return encoded if isinstance(encoded, tuple) else (encoded, {})


class CellCompressor(GridCompressor[S]):
    """A compressor whose every token is made of the latents of its own cell, and of nothing else.

    The shortest way to a compressor of one's own: subclasses name their tokens in `part` and answer
    `encode`; all else follows from the rate, which the spec holds in its field `rate`. See
    CONTRIBUTING for a whole one.
    """

    @abstractmethod
    def encode(self, cells: Tensor) -> Encoded:
        """Return the tokens `[M, D]` of cells of latents.

        Or a pair: tokens, and their features `[M, F]` by the names of `feature_widths`.

        Args:
            cells: `[M, C, n, h, w]`: C channels, n latent frames (as many as the rate says, fewer
                in a block that is not complete, one in the first), h × w latents of the rate times
                the DiT's patch. Odd sizes are padded by repeating the last row and column.
        """

    def tokens(self, span: LatentSpan) -> Encoded:
        """Return the tokens `[B, T', S, D]` of every cell: latent 0, whole blocks, what is left."""
        step, alone = self.rate(self.spec).time, 0 if span.first else 1
        first, rest = span.latents[:, :, :alone], span.latents[:, :, alone:]
        whole = rest.shape[2] // step * step
        blocks = [(first, 1), (rest[:, :, :whole], step), (rest[:, :, whole:], None)]
        frames = [self._of_blocks(x, length or x.shape[2]) for x, length in blocks if x.shape[2]]
        features = {
            name: torch.cat([named[name] for _, named in frames], dim=1) for name in frames[0][1]
        }
        return torch.cat([tokens for tokens, _ in frames], dim=1), features

    def _of_blocks(self, latents: Tensor, length: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the tokens `[B, m, S, D]` of m blocks of `length` latents `[B, C, m·n, H, W]`.

        And their features `[B, m, S, F]`.
        """
        rate, patch = self.rate(self.spec), self.geometry.patch
        high, wide = rate.height * patch.height, rate.width * patch.width
        cells = rearrange(
            pad_to(latents, high, wide),
            "b c (m n) (rows h) (columns w) -> (b m rows columns) c n h w",
            n=length, h=high, w=wide,
        )  # fmt: skip
        batch, count = latents.shape[0], latents.shape[2] // length
        tokens, features = _pair(self.encode(cells))

        def by_block(x: Tensor) -> Tensor:
            return rearrange(x, "(b m s) d -> b m s d", b=batch, m=count)

        return by_block(tokens), {name: by_block(x) for name, x in features.items()}


@frozen(eq=False, kw_only=True)
class LatentSpan:
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

    def memory(
        self,
        name: str,
        tokens: Tensor,
        rate: Rate,
        patch: Size3,
        features: Mapping[str, Tensor] | None = None,
        *,
        rounding: Rounding = "ceil",
    ) -> Memory:
        """Return a memory of one part: tokens `[B, T', S, D]` on the grid of memory frames.

        Args:
            name: of the part.
            tokens: of the blocks of these latents.
            rate: latents and patch cells to a token.
            patch: of the DiT.
            features: named features `[B, T', S, F]` of the tokens.
            rounding: what incomplete cells at the right and the bottom do.
        """
        part = grid_part(
            name, tokens, rate=rate, size=self.seen, patch=patch, start=self.start,
            length=torch.full_like(self.start, self.seen.time),
            skip=rate.settled_tokens(self.first), rounding=rounding, features=features,
        )  # fmt: skip
        return Memory(parts=(part,), size=self.seen)


def advance(state: State | None, chunk: History) -> State:
    """Return a new state that has seen the chunk, too, with all else that `state` holds.

    It holds `seen`, the size of the window so far (read by `seen_size`), and `start`, the absolute
    latent frame of the window's first latent, `[B]`.

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


def take_blocks(state: State | None, chunk: History, period: int) -> tuple[State, LatentSpan]:
    """Return the state after a chunk, and the latents of the blocks that are complete with it.

    Latent 0 is a block of its own, the others stand in blocks of `period` latents, as memory frames
    do. The state holds the latents of the incomplete block, under `waiting`.
    """
    new = advance(state, chunk)
    seen, grid = seen_size(new), _time_grid(period)
    first = grid.settled_latents(chunk.offset)
    ready = grid.settled_latents(seen.time) - first
    latents = appended(new.get("waiting"), chunk.latents, dim=2)
    new["waiting"] = own_copy(latents[:, :, ready:])
    span = LatentSpan(latents=latents[:, :, :ready], first=first, seen=seen, start=new["start"])
    return new, span


def incomplete_block(state: State, period: int) -> LatentSpan:
    """Return the latents of the incomplete block; none where all blocks are complete."""
    seen = seen_size(state)
    first = _time_grid(period).settled_latents(seen.time)
    return LatentSpan(latents=state["waiting"], first=first, seen=seen, start=state["start"])


def _time_grid(period: int) -> Rate:
    return Rate(height=1, width=1, time=period)


def appended(before: Tensor | None, new: Tensor, dim: int) -> Tensor:
    """Return `new` behind `before`, where there is any."""
    return new if before is None else torch.cat([before, new], dim=dim)


def own_copy(x: Tensor) -> Tensor:
    """Return a copy with its own memory: a slice would keep alive all that it was cut from."""
    return x.clone(memory_format=torch.contiguous_format)
