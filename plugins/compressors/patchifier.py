"""The Large Patchifier: strided projections of latents, at one rate or coarser with age."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.compressor import Compressor, Fit, Length, Needs, State
from ...core.interfaces.streaming import (
    LatentSpan,
    advance,
    appended,
    incomplete_block,
    own_copy,
    seen_size,
    take_blocks,
)
from ...core.values.grid import Geometry, Rate, Rounding, Size3
from ...core.values.history import History
from ...core.values.memory import Memory, Part, grid_part, join, stack
from .frames import repeat_ends, repeat_own_last
from .patchifier_layers import AgeGroup, Projection, ages, framepack_weights, oldest_read
from .specs import Patchifier

AGED = "patchifier-aged"  # the part's name under a schedule


class PatchifierCompressor(Compressor[Patchifier]):
    """FramePack's memory: each rate has one projection, which sees nothing beyond its own block.

    Projections start as FramePack's do: the DiT's first projection, each of its weights repeated
    over rate's height × width × time cells and divided by their number, so that a token begins as
    the DiT's own token of the block's mean.

    Without a schedule: one part, `patchifier-<rate>`, on the grid of memory frames that `conv` has;
    latent 0 is a block by itself (repeated), and the state holds the latents of the block that is
    not complete. With a schedule: one part, `patchifier-aged`, oldest first; ages change as the
    history grows, so nothing settles (except under `tail: rest`, where old blocks are final), and
    the state holds the newest latents only.

    Extents are the real cells that a token covers (under `rounding: whole` as if all were real).
    Where a block was filled up by repeating its last row, column or frame, FramePack's averaged
    rotary table counts that one again: with edge rate k and extent e, k − e times more.

    Source: method.md §6; FramePack, arXiv 2504.12626 §3 (kernels, tails) and its code.
    """

    def __init__(self, spec: Patchifier, fit: Fit) -> None:
        super().__init__(spec, fit)
        if fit.geometry.patch.time != 1:
            raise UserError("patchifier needs a DiT whose patches hold one latent frame")
        self.inner = AgedPatches(spec, fit) if spec.schedule else EvenPatches(spec, fit)
        self.settles = self.inner.settles

    @classmethod
    def needs(cls, spec: Patchifier) -> Needs:
        """Return HR latents, and nothing else."""
        return Needs()

    @classmethod
    def context_length(cls, spec: Patchifier, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens."""
        if not spec.schedule:
            return Length(tokens=spec.rate.token_grid(size, geometry.patch).cells)
        groups = ages(spec, size.time)
        grids = [group.grid(geometry.patch, size.height, size.width) for group in groups]
        pairs = zip(groups, grids, strict=True)
        return Length(tokens=sum(group.frames * rows * cols for group, (rows, cols) in pairs))

    def forward(self, history: History) -> Memory:
        """Return the memory of a whole window."""
        memory: Memory = self.inner(history)
        return memory

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return the tokens that are final from now on.

        Raises:
            ValueError: the chunk does not follow what the state has seen.
        """
        return self.inner.step(state, chunk)

    def pending(self, state: State) -> Memory:
        """Return the tokens that may still change."""
        return self.inner.pending(state)


class EvenPatches(nn.Module):
    """One rate: memory frame 0 is latent 0, repeated to a block; frame j is r(j − 1) + 1 … rj.

    State: `waiting`, the latents of the incomplete block; `seen`, `start`.
    """

    settles: ClassVar[bool] = True

    def __init__(self, spec: Patchifier, fit: Fit) -> None:
        super().__init__()
        self.rate = spec.rate
        self.patch = fit.geometry.patch
        self.rounding = cast("Rounding", spec.rounding)
        self.name = f"patchifier-{spec.rate}"
        self.project = Projection(spec.rate, fit)

    def forward(self, history: History) -> Memory:
        """Return the memory of a window; shorter samples go on with their own last latent."""
        frames = self.rate.time_tokens(history.size.time)
        # An empty history runs on one zero latent, so that the graph still holds every parameter.
        total = 1 + (max(frames, 1) - 1) * self.rate.time
        latents = repeat_own_last(history.latents, history.length, total)
        part = grid_part(
            self.name, self._tokens(latents, 0)[:, :frames], rate=self.rate, size=history.size,
            patch=self.patch, start=history.start, length=history.length, rounding=self.rounding,
        )  # fmt: skip
        return Memory(parts=(part,), size=history.size)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return the tokens of the blocks that it completed."""
        new, complete = take_blocks(state, chunk, self.rate.time)
        return new, self._memory(complete)

    def pending(self, state: State) -> Memory:
        """Return the token frame of the incomplete block."""
        return self._memory(incomplete_block(state, self.rate.time))

    def _memory(self, span: LatentSpan) -> Memory:
        if not span.latents.shape[2]:
            return Memory(size=span.seen)
        tokens = self._tokens(span.latents, span.first)
        return span.memory(self.name, tokens, self.rate, self.patch, rounding=self.rounding)

    def _tokens(self, latents: Tensor, first: int) -> Tensor:
        """Return the tokens of complete blocks, or of one incomplete, from latent `first` on."""
        tokens: Tensor = self.project(
            repeat_ends(latents, before=0 if first else self.rate.time - 1)
        )
        return tokens


class AgedPatches(nn.Module):
    """A schedule: the newest latents at full size, older ones in larger blocks.

    There is one projection a rate of the schedule. State: `recent`, the newest latents, all that
    may still be read; `seen`, `start`; with `tail: mean` `sum`, the sum of all latents before them.
    """

    def __init__(self, spec: Patchifier, fit: Fit) -> None:
        super().__init__()
        self.spec = spec
        self.patch = fit.geometry.patch
        self.settles = spec.tail == "rest"
        self.cut = spec.rounding != "whole"
        self.projections = nn.ModuleDict(
            {str(k): Projection(Rate(height=k, width=k, time=k), fit) for k, _ in spec.schedule}
        )
        if spec.weights is not None:
            self.load_state_dict(framepack_weights(spec.weights, self.state_dict()))

    def forward(self, history: History) -> Memory:
        """Return the memory of a window; in a ragged batch, each sample by its own age."""
        samples = [history]
        if history.ragged:
            samples = [history.select([index]) for index in range(history.batch)]
        parts = []
        for sample in samples:
            count = int(sample.length[0])
            latents = sample.latents[:, :, :count]  # only real ones
            older = latents[:, :, :0]
            parts.append(self._part(latents, 0, ages(self.spec, count), sample.start, older))
        return Memory(parts=(stack(parts),), size=history.size)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return the blocks that are final, under `tail: rest`."""
        new = advance(state, chunk)
        size = seen_size(new)
        latents = appended(new.get("recent"), chunk.latents, dim=2)
        old, first = oldest_read(self.spec, chunk.offset), oldest_read(self.spec, size.time)
        new["recent"] = own_copy(latents[:, :, first - old :])
        if self.spec.tail == "mean":
            new["sum"] = _summed(new.get("sum"), latents[:, :, : first - old])
        if not self.settles or first == old:
            return new, Memory(size=size)
        settled = [AgeGroup(rate=self.spec.schedule[-1][0], first=old, last=first)]
        part = self._part(latents, old, settled, new["start"], latents[:, :, :0])
        return new, Memory(parts=(part,), size=size)

    def pending(self, state: State) -> Memory:
        """Return the tokens of all that is not final."""
        size, recent = seen_size(state), state["recent"]
        first = oldest_read(self.spec, size.time)
        groups = [g.after(first) for g in ages(self.spec, size.time) if g.last > first or g.mean]
        older = recent[:, :, :0]
        if self.spec.tail == "mean" and first:
            older = (state["sum"] / first).to(recent.dtype)
        part = self._part(recent, first, groups, state["start"], older)
        return Memory(parts=(part,), size=size)

    def _part(
        self, latents: Tensor, first: int, groups: Sequence[AgeGroup], start: Tensor, older: Tensor
    ) -> Part:
        """Return the tokens of groups as one part, oldest first.

        Args:
            latents: `[B, C, T, H, W]`, those of the window from `first` on.
            first: see latents.
            groups: which latents at which rate.
            start: of the window.
            older: the mean of all latents before `first`, or none.
        """
        parts = [self._group(latents, first, group, start, older) for group in groups]
        used = {str(group.rate) for group in groups}
        parts += [self._idle(latents, rate) for rate in self.projections if rate not in used]
        return join(parts)

    def _group(
        self, latents: Tensor, first: int, group: AgeGroup, start: Tensor, older: Tensor
    ) -> Part:
        if group.mean:
            mean = older if older.shape[2] else _mean(latents[:, :, : group.last])
            shown = mean.expand(-1, -1, group.rate, -1, -1)
        else:
            shown = latents[:, :, group.first - first : group.last - first]
        tokens = self.projections[str(group.rate)](shown)
        return group.part(AGED, tokens, shown.shape[3:], self.patch, start, cut=self.cut)

    def _idle(self, latents: Tensor, rate: str) -> Part:
        """Return no tokens, but with a projection's parameters in the graph, which needs all."""
        batch, channels, _, height, width = latents.shape
        blank = latents.new_zeros(batch, channels, 1, height, width)
        tokens = self.projections[rate](blank)[:, :0]
        nothing = AgeGroup(rate=int(rate), first=0, last=0)
        start = torch.zeros(batch, dtype=torch.int64)
        return nothing.part(AGED, tokens, blank.shape[3:], self.patch, start)


def _summed(total: Tensor | None, latents: Tensor) -> Tensor:
    """Return the sum of latents over time, float32 or wider, `[B, C, 1, H, W]`."""
    wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
    added = wide.sum(dim=2, keepdim=True)
    return added if total is None else total + added


def _mean(latents: Tensor) -> Tensor:
    """Return the mean of latents over time, `[B, C, 1, H, W]`, in their dtype."""
    return (_summed(None, latents) / latents.shape[2]).to(latents.dtype)
