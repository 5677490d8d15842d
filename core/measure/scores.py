"""Figures of single frames, and their means over frames, ages and clips."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from attrs import field, frozen
from torch import Tensor

from .figures import Interval, interval
from .result import AgeBin, Quality


@frozen(eq=False, kw_only=True)
class Scores:
    """Figures of video frames of one clip.

    Attributes:
        frames: which frames, counted in the window, int64 `[F]`; some may stand twice.
        total: frames of the window.
        values: by metric, `[F]`.
        weights: how much each frame counts by metric, `[F]`; metrics that are left out: alike.
    """

    frames: Tensor
    total: int
    values: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] = field(factory=dict)

    def means(self, chosen: Tensor | None = None) -> dict[str, float]:
        """Give the weighted mean by metric over all frames, or over those `chosen`, bool `[F]`."""
        kept = torch.ones_like(self.frames, dtype=torch.bool) if chosen is None else chosen
        return {name: self._mean(name, kept) for name in self.values}

    def like(self, other: Scores) -> Scores:
        """Give the figures of the frames that `other` holds, as often as it holds them.

        Raises:
            KeyError: a frame of `other` is not here.
        """
        place = {frame: k for k, frame in enumerate(self.frames.tolist())}
        at = torch.tensor([place[frame] for frame in other.frames.tolist()])
        return Scores(
            frames=other.frames,
            total=self.total,
            values={name: value[at] for name, value in self.values.items()},
            weights={name: weight[at] for name, weight in self.weights.items()},
        )

    def _mean(self, name: str, kept: Tensor) -> float:
        value = self.values[name][kept].double()
        weight = self.weights.get(name, torch.ones(len(kept)))[kept].double()
        return float((value * weight).sum() / weight.sum())


def join(parts: Sequence[Scores]) -> Scores:
    """Give the scores of several questions about one clip as one."""
    return Scores(
        frames=torch.cat([part.frames for part in parts]),
        total=parts[0].total,
        values={m: torch.cat([part.values[m] for part in parts]) for m in parts[0].values},
        weights={m: torch.cat([part.weights[m] for part in parts]) for m in parts[0].weights},
    )


def over_clips(clips: Sequence[Scores], *, fps: float, width: float) -> Quality:
    """Give the quality over clips: each clip's mean counts once, by age bins of `width` seconds."""
    means = [clip.means() for clip in clips]
    bins: dict[int, list[dict[str, float]]] = defaultdict(list)
    for clip in clips:
        for number, found in by_age(clip, fps, width).items():
            bins[number].append(found)
    ages = tuple(
        AgeBin(start=number * width, end=(number + 1) * width, figures=_intervals(bins[number]))
        for number in sorted(bins)
    )
    return Quality(figures=_intervals(means), ages=ages)


def by_age(clip: Scores, fps: float, width: float) -> dict[int, dict[str, float]]:
    """Give means by metric over the frames of each age bin, `width` seconds wide, by its number."""
    ages = (clip.total - 1 - clip.frames) / fps
    which = (ages / width + 1e-9).floor().long()
    return {number: clip.means(which == number) for number in which.unique().tolist()}


def _intervals(rows: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    return {name: interval([row[name] for row in rows]) for name in rows[0]}


def age_width(seconds: float) -> float:
    """Give the width of age bins: whole seconds, so that there are ten at most."""
    return float(max(1, math.ceil(seconds / 10)))
