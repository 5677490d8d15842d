"""Figures as words: numbers with units, intervals, and what they mean."""

from __future__ import annotations

from attrs import frozen

from .figures import Interval
from .quantities import MetricInfo

REACHED, MISSED, OPEN, NOTE = "reached", "missed", "unclear", "note"


@frozen(kw_only=True)
class Verdict:
    """A sentence and what it means: reached, missed, unclear (the interval holds both), or note."""

    state: str
    text: str

    def __str__(self) -> str:
        return f"[{self.state}] {self.text}"


def state_of(found: Interval, low: float, high: float = float("inf")) -> str:
    """Say whether a mean lies in [low, high]; unclear where it does but its interval does not."""
    if not low <= found.mean <= high:
        return MISSED
    if found.low is None or found.high is None:
        return OPEN
    return REACHED if low <= found.low and found.high <= high else OPEN


def doubt(found: Interval, low: float) -> str:
    """Say why a figure is unclear that should be `low` or more."""
    if found.low is None:
        return "one clip shows little"
    return f"its interval reaches {'below' if found.low < low else 'above'} that"


def number(value: float, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Give a figure as text with its unit: 2 digits behind the point for dB, 3 where
    the metric has no unit, 4 for losses.
    """
    unit = f" {metric.unit}" if metric and metric.unit else ""
    return _digits(value, metric, sign) + unit


def bare(value: float, metric: MetricInfo) -> str:
    """Give a figure as text without its unit."""
    return _digits(value, metric, sign=False)


def spread(found: Interval, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Give the interval of a figure as text, with its n."""
    clips = f"{found.n} clip{'s' if found.n > 1 else ''}"
    ends = span(found, metric, sign=sign)
    return f"[{ends}] ({clips})" if ends else f"(no interval, {clips})"


def span(found: Interval, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Give the two ends of an interval as text, or nothing where it has none."""
    if found.low is None or found.high is None:
        return ""
    return f"{_digits(found.low, metric, sign)}, {_digits(found.high, metric, sign)}"


def _digits(value: float, metric: MetricInfo | None, sign: bool) -> str:
    digits = 4 if metric is None else 2 if metric.unit else 3
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")
