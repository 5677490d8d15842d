"""`patchifier` under a schedule: the newest latents at full size, older ones in larger blocks."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor, nn

from ...core.compressor import State
from ...core.fit import Fit
from ...core.grid import Rate, Size3
from ...core.history import History
from ...core.memory import Memory, Part, join
from ...core.streams import joined, own
from ..patchifier_specs import Patchifier
from .patchifier_groups import Group, ages, keeps, pad_part, place
from .patchifier_layers import Projection
from .patchifier_weights import framepack_weights

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
        """Give the memory of a window; in a ragged batch, each sample by its own age."""
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
        """Give the tokens of all that is not final."""
        time, height, width = state["seen"].tolist()
        first = keeps(self.spec, time)
        groups = [g.after(first) for g in ages(self.spec, time) if g.last > first or g.mean]
        older = state["recent"][:, :, :0]
        if self.spec.tail == "mean" and first:
            older = (state["sum"] / first).to(state["recent"].dtype)
        part = self._part(state["recent"], first, groups, state["start"], older)
        return Memory(parts=(part,), size=Size3(time=time, height=height, width=width))

    def _summed(self, total: Tensor | None, latents: Tensor) -> Tensor:
        """Give the sum of latents over time, float32 or wider, `[B, C, 1, H, W]`."""
        wide = latents.to(torch.promote_types(latents.dtype, torch.float32))
        added = wide.sum(dim=2, keepdim=True)
        return added if total is None else total + added

    def _alone(self, history: History, index: int) -> Part:
        """Give the tokens of one sample, from its real latents only."""
        count = int(history.length[index])
        latents = history.latents[index : index + 1, :, :count]
        start = history.start[index : index + 1]
        return self._part(latents, 0, ages(self.spec, count), start, latents[:, :, :0])

    def _part(
        self, latents: Tensor, first: int, groups: Sequence[Group], start: Tensor, older: Tensor
    ) -> Part:
        """Give the tokens of groups as one part, oldest first.

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
        """Give no tokens, but with a projection's parameters in the graph: none may be left out."""
        batch, channels, _, height, width = latents.shape
        blank = latents.new_zeros(batch, channels, 1, height, width)
        tokens = self.projections[rate](blank)[:, :0]
        nothing = Group(rate=int(rate), first=0, last=0)
        start = torch.zeros(batch, dtype=torch.int64)
        return place(NAME, tokens, nothing, blank.shape[3:], self.patch, start)


def _stacked(parts: Sequence[Part]) -> Part:
    """Give parts of single samples, equally long, as one of a batch."""
    return Part(
        name=NAME,
        tokens=torch.cat([part.tokens for part in parts]),
        positions=torch.cat([part.positions for part in parts]),
        extents=torch.cat([part.extents for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
    )


def count_tokens(spec: Patchifier, patch: Size3, size: Size3) -> int:
    """Give the tokens of a history of `size` latents under a schedule."""
    return sum(group.tokens(patch, size) for group in ages(spec, size.time))
