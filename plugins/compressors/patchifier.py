"""The Large Patchifier: strided projections of latents, at one rate or coarser with age."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.compressor import Compressor, Fit, Length, Needs, State
from ...core.interfaces.streaming import joined, own
from ...core.values.grid import Geometry, Rate, Size3
from ...core.values.history import History
from ...core.values.memory import Memory, Part, grid_part, join
from .patchifier_layers import Group, Projection, ages, framepack_weights, keeps, pad_part, place
from .specs import Patchifier
from .tokens import extended

# ⟦plugins/compressors/patchifier_aged.py⟧ `patchifier` under a schedule: the newest latents at full size, older ones in larger blocks.


NAME = "patchifier-aged"


class AgedPatches(nn.Module):
    """One projection a rate of the schedule.

    State: `recent`, the newest latents, all that may still be read; `seen`, `start`; with
    `tail: mean` `sum`, the sum of all latents before them.
    """

    def __init__(self, spec: Patchifier, fit: Fit) -> None:
        super().__init__()
        self.spec = spec
        self.patch = fit.geometry.patch
        self.settles = spec.tail == "rest"
        self.projections = nn.ModuleDict(
            {str(k): Projection(Rate(height=k, width=k, time=k), fit) for k, _ in spec.schedule}
        )
        if spec.weights is not None:
            self.load_state_dict(framepack_weights(spec.weights, self.state_dict()))

    def whole(self, history: History) -> Memory:
        """Return the memory of a window; in a ragged batch, each sample by its own age."""
        if not history.ragged:
            count = history.size.time
            groups, older = ages(self.spec, count), history.latents[:, :, :0]
            part = self._part(history.latents, 0, groups, history.start, older)
            return Memory(parts=(part,), size=history.size)
        parts = [self._alone(history, index) for index in range(history.batch)]
        longest = max(part.tokens.shape[1] for part in parts)
        padded = [pad_part(part, longest) for part in parts]
        return Memory(parts=(_stacked(padded),), size=history.size)

    def take(self, state: State, chunk: History, before: int) -> tuple[State, Memory]:
        """Take the next chunk; give the blocks that are final, under `tail: rest`."""
        size = attrs.evolve(chunk.size, time=before + chunk.size.time)
        latents = joined(state.get("recent"), chunk.latents, dim=2)
        old, first = keeps(self.spec, before), keeps(self.spec, size.time)
        start = state.get("start", chunk.start.clone())
        new: State = {
            "seen": torch.tensor([size.time, size.height, size.width]),
            "start": start,
            "recent": own(latents[:, :, first - old :]),
        }
        if self.spec.tail == "mean":
            new["sum"] = self._summed(state.get("sum"), latents[:, :, : first - old])
        if not self.settles or first == old:
            return new, Memory(size=size)
        settled = [Group(rate=self.spec.schedule[-1][0], first=old, last=first)]
        part = self._part(latents, old, settled, start, latents[:, :, :0])
        return new, Memory(parts=(part,), size=size)

    def rest(self, state: State) -> Memory:
        """Return the tokens of all that is not final."""
        time, height, width = state["seen"].tolist()
        first = keeps(self.spec, time)
        groups = [g.after(first) for g in ages(self.spec, time) if g.last > first or g.mean]
        older = state["recent"][:, :, :0]
        if self.spec.tail == "mean" and first:
            older = (state["sum"] / first).to(state["recent"].dtype)
        part = self._part(state["recent"], first, groups, state["start"], older)
        return Memory(parts=(part,), size=Size3(time=time, height=height, width=width))

    def _summed(self, total: Tensor | None, latents: Tensor) -> Tensor:
        """Return the sum of latents over time, float32 or wider, `[B, C, 1, H, W]`."""
        wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
        added = wide.sum(dim=2, keepdim=True)
        return added if total is None else total + added

    def _alone(self, history: History, index: int) -> Part:
        """Return the tokens of one sample, from its real latents only."""
        count = int(history.length[index])
        latents = history.latents[index : index + 1, :, :count]
        start = history.start[index : index + 1]
        return self._part(latents, 0, ages(self.spec, count), start, latents[:, :, :0])

    def _part(
        self, latents: Tensor, first: int, groups: Sequence[Group], start: Tensor, older: Tensor
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
        self, latents: Tensor, first: int, group: Group, start: Tensor, older: Tensor
    ) -> Part:
        if group.mean:
            shown = older if older.shape[2] else self._mean(latents[:, :, : group.last])
            shown = shown.expand(-1, -1, group.rate, -1, -1)
        else:
            shown = latents[:, :, group.first - first : group.last - first]
        tokens = self.projections[str(group.rate)](shown)
        return place(NAME, tokens, group, shown.shape[3:], self.patch, start)

    def _mean(self, latents: Tensor) -> Tensor:
        return (self._summed(None, latents) / latents.shape[2]).to(latents.dtype)

    def _idle(self, latents: Tensor, rate: str) -> Part:
        """Return no tokens, but with a projection's parameters in the graph: none may be left out."""
        batch, channels, _, height, width = latents.shape
        blank = latents.new_zeros(batch, channels, 1, height, width)
        tokens = self.projections[rate](blank)[:, :0]
        nothing = Group(rate=int(rate), first=0, last=0)
        start = torch.zeros(batch, dtype=torch.int64)
        return place(NAME, tokens, nothing, blank.shape[3:], self.patch, start)


def _stacked(parts: Sequence[Part]) -> Part:
    """Return parts of single samples, equally long, as one of a batch."""
    return Part(
        name=NAME,
        tokens=torch.cat([part.tokens for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        extents=torch.cat([part.extents for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
    )


def count_tokens(spec: Patchifier, patch: Size3, size: Size3) -> int:
    """Return the tokens of a history of `size` latents under a schedule."""
    return sum(group.tokens(patch, size) for group in ages(spec, size.time))


# ⟦plugins/compressors/patchifier_even.py⟧ `patchifier` at one rate: blocks of latents on the grid of memory frames.


class EvenPatches(nn.Module):
    """Memory frame 0 is latent 0, repeated to a block; frame j is latents r(j − 1) + 1 … rj.

    State: `waiting`, the latents of the incomplete block; `seen`, `start`.
    """

    settles: ClassVar[bool] = True

    def __init__(self, spec: Patchifier, fit: Fit) -> None:
        super().__init__()
        self.rate = spec.rate
        self.patch = fit.geometry.patch
        self.project = Projection(spec.rate, fit)

    def whole(self, history: History) -> Memory:
        """Return the memory of a window; shorter samples go on with their own last latent."""
        frames = self.rate.time_tokens(history.size.time)
        # An empty history runs on one zero latent, so that the graph still holds every parameter.
        total = 1 + (max(frames, 1) - 1) * self.rate.time
        latents = extended(history.latents, history.length, total)
        tokens = self._tokens(latents, first=True)[:, :frames]
        return self._memory(tokens, history.size, history.start, history.length, 0)

    def take(self, state: State, chunk: History, before: int) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens of the blocks that it completed."""
        size = attrs.evolve(chunk.size, time=before + chunk.size.time)
        ready = self.rate.settled_latents(size.time) - self.rate.settled_latents(before)
        waiting = joined(state.get("waiting"), chunk.latents, dim=2)
        new: State = {
            "seen": torch.tensor([size.time, size.height, size.width]),
            "start": state.get("start", chunk.start.clone()),
            "waiting": own(waiting[:, :, ready:]),
        }
        if not ready:
            return new, Memory(size=size)
        tokens = self._tokens(waiting[:, :, :ready], first=before == 0)
        length = torch.full_like(chunk.length, size.time)
        skip = self.rate.settled_tokens(before)
        return new, self._memory(tokens, size, new["start"], length, skip)

    def rest(self, state: State) -> Memory:
        """Return the token frame of the incomplete block."""
        time, height, width = state["seen"].tolist()
        size = Size3(time=time, height=height, width=width)
        if not state["waiting"].shape[2]:
            return Memory(size=size)
        length = torch.full_like(state["start"], time)
        tokens = self._tokens(state["waiting"], first=False)
        return self._memory(tokens, size, state["start"], length, self.rate.settled_tokens(time))

    def _tokens(self, latents: Tensor, *, first: bool) -> Tensor:
        """Return the tokens of complete blocks, or of one incomplete; `first`: latent 0 is there."""
        if first:
            before = latents[:, :, :1].expand(-1, -1, self.rate.time - 1, -1, -1)
            latents = torch.cat([before, latents], dim=2)
        tokens: Tensor = self.project(latents)
        return tokens

    def _memory(
        self, tokens: Tensor, size: Size3, start: Tensor, length: Tensor, skip: int
    ) -> Memory:
        part = grid_part(
            f"patchifier-{self.rate}",
            tokens,
            rate=self.rate,
            size=size,
            patch=self.patch,
            grid=self.rate.token_grid(size, self.patch),
            start=start,
            length=length,
            skip=skip,
        )
        return Memory(parts=(part,), size=size)


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

    Extents are the real cells that a token covers. Where a block was filled up by repeating its
    last row, column or frame, FramePack's averaged rotary table counts that one again: with edge
    rate k and extent e, k − e times more.

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
        if spec.schedule:
            return Length(tokens=count_tokens(spec, geometry.patch, size))
        return Length(tokens=spec.rate.token_grid(size, geometry.patch).cells)

    def forward(self, history: History) -> Memory:
        """Return the memory of a whole window."""
        return self.inner.whole(history)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens that are final from now on.

        Raises:
            ValueError: the chunk does not follow what the state has seen.
        """
        before = int(state["seen"][0]) if state else 0
        if chunk.offset != before:
            raise ValueError(f"a chunk from latent {chunk.offset} after {before} were seen")
        return self.inner.take(state or {}, chunk, before)

    def pending(self, state: State) -> Memory:
        """Return the tokens that may still change."""
        return self.inner.rest(state)
