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
    if not values:
        raise ValueError("no value, no mean")
    found = torch.tensor(list(values), dtype=torch.float64)
    mean, n = float(found.mean()), len(found)
    if n == 1:
        return Interval(mean=mean, low=None, high=None, n=1)
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(SEED))
    ends = torch.tensor([(1 - SHARE) / 2, (1 + SHARE) / 2], dtype=torch.float64)
    low, high = found[drawn].mean(dim=1).quantile(ends).tolist()
    return Interval(mean=mean, low=min(low, mean), high=max(high, mean), n=n)


def interval_or_none(values: Sequence[float | None]) -> Interval | None:
    """Give the interval of the values that exist, or None where none does."""
    kept = [value for value in values if value is not None]
    return interval(kept) if kept else None
