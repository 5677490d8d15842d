"""From the runs of a table to its figures: over clips and seeds, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from attrs import frozen

from ...core.fit import Length
from ...core.measure.figures import Interval, interval
from .rows import Row

Run = Mapping[str, Any]  # what `work` wrote


@frozen(kw_only=True)
class Line:
    """One row of the table, over the seeds that are done.

    Attributes:
        tokens: context length of the history that is measured.
        clips: of the main retriever by metric, mean over seeds of each clip, in one order.
        figures: their mean and interval over clips, by metric.
        spread: standard deviation of the seeds' means by metric; None with one seed.
        masked: as `figures`, from masked histories.
        gain, foreign: memory_gain, and the loss with another clip's memory minus without any.
        ages: by age bin, (start, end, mean of the first metric).
        cost: of the encoder, of the first seed.
    """

    row: Row
    seeds: tuple[int, ...]
    tokens: Length
    clips: Mapping[str, Mapping[str, float]]
    figures: Mapping[str, Interval]
    spread: Mapping[str, float | None]
    masked: Mapping[str, Interval]
    gain: Interval
    foreign: Interval | None
    ages: tuple[tuple[float, float, float], ...]
    cost: Mapping[str, Any]


def line_of(row: Row, runs: Sequence[Run], tokens: Length) -> Line:
    """Give the line of a row from its runs, one a seed, all on the same clips."""
    first = runs[0]
    clips = {m: _clips(runs, m, "unmasked") for m in first["metrics"]}
    masked = {m: _clips(runs, m, "masked") for m in first["metrics"]}
    foreign = _over(runs, "foreign")
    return Line(
        row=row,
        seeds=tuple(run["seed"] for run in runs),
        tokens=tokens,
        clips=clips,
        figures={m: interval(list(found.values())) for m, found in clips.items()},
        spread={m: _spread(runs, m) for m in first["metrics"]},
        masked={m: interval(list(found.values())) for m, found in masked.items()},
        gain=interval(_over(runs, "gain")),
        foreign=interval(foreign) if foreign else None,
        ages=_ages(runs),
        cost=first["cost"],
    )


def paired(better: Line, worse: Line, metric: str) -> Interval:
    """Give how much higher a metric of one line is than another's, clip by clip."""
    ours, theirs = better.clips[metric], worse.clips[metric]
    return interval([ours[clip] - theirs[clip] for clip in ours if clip in theirs])


def floors(runs: Sequence[Run], metric: str) -> dict[str, Interval]:
    """Give ceiling and floors of a run's clips, which are alike in all rows, by name."""
    first = runs[0]
    names = [name for name, kind in first["kinds"].items() if kind in ("ceiling", "floor")]
    return {
        name: interval([clip["unmasked"][name][metric] for clip in first["clips"]])
        for name in names
    }


def oldest(line: Line) -> float:
    """Give the first metric on the oldest quarter of ages."""
    ages = sorted(line.ages, key=lambda found: -found[0])
    return fmean(found[2] for found in ages[: max(1, len(ages) // 4)])


def _clips(runs: Sequence[Run], metric: str, how: str) -> dict[str, float]:
    names = [clip["id"] for clip in runs[0]["clips"]]
    by_run = [{clip["id"]: clip[how][run["main"]][metric] for clip in run["clips"]} for run in runs]
    return {name: fmean(found[name] for found in by_run) for name in names}


def _over(runs: Sequence[Run], key: str) -> list[float]:
    """Give a figure of each clip that has it, mean over seeds."""
    columns = zip(*([clip[key] for clip in run["clips"]] for run in runs), strict=True)
    return [fmean(column) for column in columns if None not in column]


def _spread(runs: Sequence[Run], metric: str) -> float | None:
    means = [fmean(_clips([run], metric, "unmasked").values()) for run in runs]
    return stdev(means) if len(means) > 1 else None


def _ages(runs: Sequence[Run]) -> tuple[tuple[float, float, float], ...]:
    metric = runs[0]["metrics"][0]
    bins = [run["ages"][run["main"]] for run in runs]
    return tuple(
        (found[0]["start"], found[0]["end"], fmean(b["figures"][metric]["mean"] for b in found))
        for found in zip(*bins, strict=True)
    )
