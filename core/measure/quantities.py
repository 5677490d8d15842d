"""Metrics, and quality by retriever, as plain values."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from ..metric import Goal, merit
from .figures import Interval


@frozen(kw_only=True)
class MetricInfo:
    """A metric as reports need it.

    Attributes:
        name: unique in the result; `plugin` the name it is found by; `title` as printed.
        unit: printed behind figures, "" for none.
        goal: "higher" or "lower" is better, or the number that equal frames have.
        needs: why it was not measured here; "": it was.
    """

    name: str
    plugin: str
    title: str
    unit: str
    goal: Goal
    needs: str = ""

    def merit(self, value: float) -> float:
        """Give a figure so that more is better."""
        return merit(self.goal, value)

    @property
    def wish(self) -> str:
        """What is good, in words."""
        return f"{self.goal} is better" if isinstance(self.goal, str) else f"best at {self.goal:g}"


@frozen(kw_only=True)
class AgeBin:
    """Quality of the frames `start` to `end` seconds before the end of the history, by metric."""

    start: float
    end: float
    figures: Mapping[str, Interval]


@frozen(kw_only=True)
class Quality:
    """Quality over clips by metric, and by age."""

    figures: Mapping[str, Interval]
    ages: tuple[AgeBin, ...]


@frozen(kw_only=True)
class Retrieval:
    """One retriever over all clips.

    Attributes:
        name: unique among the retrievers of the result.
        kind: learned, part (learned, of one part of the memory alone), floor, guide (a floor that
            had no codec to pass) or ceiling.
        unmasked: from the memory of the clean history, every frame asked for.
        masked: from the memory of masked histories, Ω asked for; learned ones only.
        numbers: how many numbers a clip is kept as (median over clips), where it is known.
        seconds: median over clips of the time that one latent frame takes, not decoded.
        samples: what it gives is a sample, of which detail is asked, and no mean.
    """

    name: str
    kind: str
    unmasked: Quality
    masked: Quality | None = None
    numbers: int | None = None
    seconds: float | None = None
    samples: bool = False


@frozen(kw_only=True)
class Distance:
    """How much better the main retriever is than another, clip by clip; below 0 it is worse.

    Where the goal of a metric is a number, it is how much nearer to it.
    """

    name: str
    kind: str
    figures: Mapping[str, Interval]
