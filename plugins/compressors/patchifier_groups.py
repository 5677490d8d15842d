"""Which latents a schedule of ages gives to which rate, and where their tokens sit."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ...core.grid import Size3, ceil_div
from ...core.memory import Part
from ...core.positions import spans
from ..patchifier_specs import Patchifier


@frozen(kw_only=True)
class Group:
    """Latents first … last − 1 of the window, in blocks of `rate`; `mean`: all as one frame."""

    rate: int
    first: int
    last: int
    mean: bool = False

    @property
    def frames(self) -> int:
        """Memory frames."""
        return 1 if self.mean else ceil_div(self.last - self.first, self.rate)

    def after(self, first: int) -> Group:
        """Give the group without latents before `first` (a mean stays whole)."""
        return self if self.mean else attrs.evolve(self, first=max(self.first, first))

    def tokens(self, patch: Size3, size: Size3) -> int:
        """Give the tokens of it in a history of `size`."""
        rows, columns = ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)
        return self.frames * ceil_div(rows, self.rate) * ceil_div(columns, self.rate)


def ages(spec: Patchifier, count: int) -> list[Group]:
    """Give the groups of a history of `count` latents, oldest first; empty ones are left out."""
    groups: list[Group] = []
    last = count
    for rate, latents in spec.schedule:
        whole = spec.tail == "rest" and rate == spec.schedule[-1][0]
        first = 0 if whole else max(0, last - latents)
        groups.append(Group(rate=rate, first=first, last=last))
        last = first
    if spec.tail == "mean" and last:
        groups.append(Group(rate=spec.schedule[-1][0], first=0, last=last, mean=True))
    return [group for group in reversed(groups) if group.last > group.first]


def keeps(spec: Patchifier, count: int) -> int:
    """Give the first latent that is still read after `count` were seen.

    Under `tail: rest` those before it stand in complete blocks of the last rate, which are final;
    else they are too old for the schedule.
    """
    if spec.tail != "rest":
        return max(0, count - sum(latents for _, latents in spec.schedule))
    newer = sum(latents for _, latents in spec.schedule[:-1])
    rate = spec.schedule[-1][0]
    return max(0, count - newer) // rate * rate


def place(
    name: str, tokens: Tensor, group: Group, cells: Sequence[int], patch: Size3, start: Tensor
) -> Part:
    """Give tokens `[B, T', S, D]` of a group with their places.

    Args:
        name: of the part.
        tokens: of the group.
        group: which latents.
        cells: latent rows and columns.
        patch: of the DiT.
        start: absolute latent frame of the window, `[B]`.
    """
    batch, frames = tokens.shape[:2]
    if group.mean:
        t0, t1 = torch.zeros(1).double(), torch.full((1,), group.last - 1.0).double()
    else:
        t0, t1 = (x + group.first for x in spans(group.last - group.first, group.rate, frames))
    rows, columns = ceil_div(cells[0], patch.height), ceil_div(cells[1], patch.width)
    h0, h1 = spans(rows, group.rate, ceil_div(rows, group.rate))
    w0, w1 = spans(columns, group.rate, ceil_div(columns, group.rate))

    def spread(t: Tensor, h: Tensor, w: Tensor) -> Tensor:
        grid = torch.meshgrid(t, h, w, indexing="ij")
        return torch.stack([x.flatten() for x in grid], dim=-1).expand(batch, -1, 3)

    origin = torch.zeros(batch, 1, 3, dtype=torch.float64)
    origin[:, 0, 0] = start.cpu().double()
    return Part(
        name=name,
        tokens=tokens.flatten(1, 2),
        positions=spread((t0 + t1) / 2, (h0 + h1) / 2, (w0 + w1) / 2) + origin,
        extents=spread(t1 - t0 + 1, h1 - h0 + 1, w1 - w0 + 1).clone(),
        valid=torch.ones(batch, tokens.shape[1] * tokens.shape[2], dtype=torch.bool),
    )


def pad_part(part: Part, total: int) -> Part:
    """Give a part of one sample with padding behind it, so that it has `total` tokens."""
    count = part.tokens.shape[1]
    if count == total:
        return part

    def pad(x: Tensor, value: float) -> Tensor:
        return torch.cat([x, x.new_full((1, total - count, x.shape[2]), value)], dim=1)

    return Part(
        name=part.name,
        tokens=pad(part.tokens, 0.0),
        positions=pad(part.positions, 0.0),
        extents=pad(part.extents, 1.0),
        valid=torch.cat([part.valid, part.valid.new_zeros(1, total - count)], dim=1),
    )
