"""Figures that say how sure they are: a mean, its interval over clips, and how many clips."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen

RESAMPLES = 2000
SHARE = 0.95
SEED = 2512


@frozen(kw_only=True)
class Interval:
    """A mean over clips and its 95 % interval, which one clip alone does not have.

    Attributes:
        mean: over clips, each counted once.
        low, high: ends of the interval; None where n is 1.
        n: clips.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def interval(values: Sequence[float]) -> Interval:
    """Give the mean of one value a clip with its 95 % interval, by bootstrap over clips.

    Percentiles of the means of 2000 resamples, drawn from a fixed seed: the same values always
    give the same interval. With few clips such an interval is rather too narrow.

    Raises:
        ValueError: there is no value.
    """
    return crossed([values])


def crossed(values: Sequence[Sequence[float]]) -> Interval:
    """Give the mean over runs and clips with its 95 % interval: both are resampled.

    With one run this is `interval` of its clips. With few runs such an interval is too narrow.

    Args:
        values: of each run one value a clip, the same clips in the same order.

    Raises:
        ValueError: there is no value.
    """
    if not values or not values[0]:
        raise ValueError("no value, no mean")
    found = torch.tensor([list(run) for run in values], dtype=torch.float64)  # [runs, clips]
    mean, (runs, n) = float(found.mean()), found.shape
    if n == 1:
        return Interval(mean=mean, low=None, high=None, n=1)
    generator = torch.Generator().manual_seed(SEED)
    clips = torch.randint(n, (RESAMPLES, 1, n), generator=generator)
    which = torch.randint(runs, (RESAMPLES, runs, 1), generator=generator)
    return _ends(mean, found[which, clips].mean(dim=(1, 2)), n)


def _ends(mean: float, means: torch.Tensor, n: int) -> Interval:
    ends = torch.tensor([(1 - SHARE) / 2, (1 + SHARE) / 2], dtype=torch.float64)
    low, high = means.quantile(ends).tolist()
    return Interval(mean=mean, low=min(low, mean), high=max(high, mean), n=n)


def interval_or_none(values: Sequence[float | None]) -> Interval | None:
    """Give the interval of the values that exist, or None where none does."""
    kept = [value for value in values if value is not None]
    return interval(kept) if kept else None
