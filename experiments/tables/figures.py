"""From the runs of a table to its figures: over clips and seeds, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean, mode, stdev
from typing import Any

from attrs import frozen

from ...core.measure.figures import Interval, crossed, interval
from .rows import Row

Run = Mapping[str, Any]  # what `work` wrote
Grid = Mapping[int, Mapping[str, float]]  # a figure by seed and clip
OLD = 0.25  # share of a clip's ages that counts as old


@frozen(kw_only=True)
class Line:
    """One row of the table, over the seeds that are done.

    Attributes:
        tokens: context length of most clips' memory.
        clips: of the main retriever, by metric, from the memory of the clean history.
        sampled: the same of the retriever that samples, where one does.
        masked, same: of the frames of masked queries, by metric: from the masked history, and
            from the clean one.
        swapped: as `clips`, from the memory of another clip.
        old: the first metric on the oldest quarter of each clip.
        gain, specific, foreign: of losses, as in `core.measure.result.GainFigures`.
        ages: by age bin, (start, end, mean of the first metric).
        cost: of the encoder, of the first seed.
    """

    row: Row
    seeds: tuple[int, ...]
    tokens: int
    clips: Mapping[str, Grid]
    sampled: Mapping[str, Grid]
    masked: Mapping[str, Grid]
    same: Mapping[str, Grid]
    swapped: Mapping[str, Grid]
    old: Grid
    gain: Grid
    specific: Grid
    foreign: Grid
    ages: tuple[tuple[float, float, float], ...]
    cost: Mapping[str, Any]


def line_of(row: Row, runs: Sequence[Run]) -> Line:
    """Give the line of a row from its runs, one a seed."""
    first = runs[0]
    main, metrics = first["main"], first["metrics"]
    other = next((n for n, kind in first["kinds"].items() if kind == "learned" and n != main), "")

    def grids(field: str, name: str) -> dict[str, Grid]:
        return {m: grid(runs, partial(_at, field, name, m)) for m in metrics}

    return Line(
        row=row,
        seeds=tuple(run["seed"] for run in runs),
        tokens=mode(clip["tokens"] for clip in first["clips"]),
        clips=grids("unmasked", main),
        sampled=grids("unmasked", other) if other else {},
        masked=grids("masked", main),
        same=grids("same", main),
        swapped={m: grid(runs, partial(_swapped, m)) for m in metrics},
        old=grid(runs, lambda clip: _old(clip["ages"], metrics[0])),
        gain=grid(runs, lambda clip: clip["gain"]),
        specific=grid(runs, lambda clip: clip["specific"]),
        foreign=grid(runs, lambda clip: clip["foreign"]),
        ages=_ages(runs),
        cost=first["cost"],
    )


def grid(runs: Sequence[Run], pick: Callable[[Any], float | None]) -> Grid:
    """Give a figure of every clip of every run; clips that lack it are left out."""
    return {
        run["seed"]: {c["id"]: value for c in run["clips"] if (value := pick(c)) is not None}
        for run in runs
    }


def minus(ours: Grid, theirs: Grid) -> Grid:
    """Give how much higher a figure is than another: by seed and clip, where both have it."""
    return {
        seed: {clip: value - theirs[seed][clip] for clip, value in found.items() if clip in both}
        for seed, found in ours.items()
        if seed in theirs and (both := theirs[seed])
    }


def over(found: Grid) -> Interval | None:
    """Give the mean over seeds and clips with its interval; None where there is no figure.

    Clips that some seed lacks are left out.
    """
    runs = list(found.values())
    shared = [clip for clip in runs[0] if all(clip in run for run in runs)] if runs else []
    return crossed([[run[clip] for clip in shared] for run in runs]) if shared else None


def spread(found: Grid) -> float | None:
    """Give the standard deviation of the seeds' means; None with one seed."""
    means = [fmean(run.values()) for run in found.values()]
    return stdev(means) if len(means) > 1 else None


def floors(runs: Sequence[Run], metric: str) -> dict[str, Interval]:
    """Give ceiling and floors of a run's clips, which are alike in all rows, by name."""
    first = runs[0]
    names = [name for name, kind in first["kinds"].items() if kind in ("ceiling", "floor")]
    return {
        name: interval([clip["unmasked"][name][metric] for clip in first["clips"]])
        for name in names
    }


def _at(field: str, name: str, metric: str, clip: Any) -> float:
    found: float = clip[field][name][metric]
    return found


def _swapped(metric: str, clip: Any) -> float | None:
    found: float | None = clip["swapped"][metric] if clip["swapped"] else None
    return found


def _old(ages: Mapping[str, Mapping[str, float]], metric: str) -> float:
    oldest = sorted(ages, key=float, reverse=True)[: max(1, round(OLD * len(ages)))]
    return fmean(ages[start][metric] for start in oldest)


def _ages(runs: Sequence[Run]) -> tuple[tuple[float, float, float], ...]:
    metric = runs[0]["metrics"][0]
    bins = [run["ages"][run["main"]] for run in runs]
    return tuple(
        (found[0]["start"], found[0]["end"], fmean(b["figures"][metric]["mean"] for b in found))
        for found in zip(*bins, strict=True)
    )
