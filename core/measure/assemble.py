"""From single clips to the figures of a result."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, median_low

import attrs
from attrs import frozen

from ..data.record import Record
from ..experiment import Experiment
from ..grid import Rate, Size3, ceil_div
from ..metric import Metric, merit
from ..registry import registry
from ..spec import MetricSpec
from .figures import Interval, interval
from .gain import ClipGain
from .prepare import Prepared
from .quality import CEILING, ClipQuality
from .result import ClipRow, Distance, LongRow, MetricInfo, Quality, Retrieval
from .scores import Scores, age_width, by_age, over_clips


@frozen(eq=False, kw_only=True)
class Seen:
    """All that was measured of one clip."""

    record: Record
    quality: ClipQuality
    gain: ClipGain


def metric_infos(at: Prepared) -> tuple[MetricInfo, ...]:
    """Give what the measured metrics say of themselves."""
    return tuple(_info(at, name, metric) for name, metric in at.metrics.items())


def missing_infos(at: Prepared) -> tuple[MetricInfo, ...]:
    """Give the metrics that could not be measured here, with what they need."""
    found = at.missing.items()
    return tuple(attrs.evolve(_info(at, n, m), needs=m.lacks()) for n, m in found)


def _info(at: Prepared, name: str, metric: Metric[MetricSpec]) -> MetricInfo:
    plugin = registry().find(metric.spec).name
    title = metric.title or name.upper()
    return MetricInfo(name=name, plugin=plugin, title=title, unit=metric.unit, goal=metric.goal)


def rates_of(experiment: Experiment) -> tuple[str, ...]:
    """Give the compression rates that the compressors' specs name, in their order."""
    values = [v for spec in experiment.compressors for v in attrs.astuple(spec, recurse=False)]
    return tuple(dict.fromkeys(str(value) for value in values if isinstance(value, Rate)))


def retrievals(at: Prepared, clips: Sequence[ClipQuality]) -> tuple[Retrieval, ...]:
    """Give the ceiling, every retriever, and the main one of each part alone, over clips."""
    parts = [name for name in clips[0].unmasked if name not in (CEILING, *at.retrievers)]
    return tuple(_retrieval(at, name, clips) for name in (CEILING, *at.retrievers, *parts))


def _retrieval(at: Prepared, name: str, clips: Sequence[ClipQuality]) -> Retrieval:
    numbers = [n for clip in clips if (n := clip.numbers.get(name)) is not None]
    seconds = [clip.seconds[name] for clip in clips if name in clip.seconds]
    masked = [clip.masked[name] for clip in clips if name in clip.masked]
    return Retrieval(
        name=name,
        kind=_kind(at, name),
        unmasked=_over(at, [clip.unmasked[name] for clip in clips]),
        masked=_over(at, masked) if masked else None,
        numbers=median_low(numbers) if numbers else None,
        seconds=median(seconds) if seconds else None,
        samples=name in at.retrievers and at.retrievers[name].samples,
    )


def _kind(at: Prepared, name: str) -> str:
    if name == CEILING:
        return CEILING
    if name not in at.retrievers:
        return "part"
    if at.retrievers[name].learned:
        return "learned"
    return "guide" if at.retrievers[name].guide else "floor"


def _over(at: Prepared, clips: Sequence[Scores]) -> Quality:
    width = age_width(at.model.experiment.measure.seconds)
    return over_clips(clips, fps=at.store.fps, width=width)


def distances(
    at: Prepared, main: str, found: Sequence[Retrieval], clips: Sequence[ClipQuality]
) -> tuple[Distance, ...]:
    """Give how much better the main retriever is than every other one, paired by clip."""
    return tuple(
        Distance(
            name=other.name,
            kind=other.kind,
            figures={
                metric: _distance(at, metric, main, other.name, clips) for metric in at.metrics
            },
        )
        for other in found
        if other.name != main and other.kind != "part"
    )


def _distance(
    at: Prepared, metric: str, main: str, other: str, clips: Sequence[ClipQuality]
) -> Interval:
    goal = at.metrics[metric].goal
    pairs = [(clip.unmasked[main].means(), clip.unmasked[other].means()) for clip in clips]
    return interval([merit(goal, mine[metric]) - merit(goal, his[metric]) for mine, his in pairs])


def clip_row(at: Prepared, seen: Seen) -> ClipRow:
    """Give the row of one clip."""
    record, quality, gain = seen.record, seen.quality, seen.gain
    size = at.size(record)
    return ClipRow(
        id=record.id,
        name=record.name,
        caption=record.caption,
        size=str(size),
        seconds=_seconds(at, size),
        cut=record.latents > size.time,
        short=size.time < at.length,
        tokens=quality.tokens,
        parts=quality.parts,
        uncompressed=_uncompressed(at, size),
        unmasked={name: scores.means() for name, scores in quality.unmasked.items()},
        masked={name: scores.means() for name, scores in quality.masked.items()},
        gain=gain.gain,
        specific=gain.specific,
        foreign=gain.foreign,
        same={n: quality.unmasked[n].like(s).means() for n, s in quality.masked.items()},
        ages=_ages(at, quality.unmasked[at.main]),
        swapped=quality.foreign.means() if quality.foreign else None,
    )


def _ages(at: Prepared, main: Scores) -> dict[str, dict[str, float]]:
    width = age_width(at.model.experiment.measure.seconds)
    found = by_age(main, at.store.fps, width)
    return {f"{number * width:g}": means for number, means in found.items()}


def long_row(at: Prepared, record: Record, quality: ClipQuality) -> LongRow:
    """Give the row of one clip at the greater length."""
    size = at.size(record)
    return LongRow(
        id=record.id,
        name=record.name,
        size=str(size),
        seconds=_seconds(at, size),
        tokens=quality.tokens,
        uncompressed=_uncompressed(at, size),
        unmasked={name: scores.means() for name, scores in quality.unmasked.items()},
    )


def _seconds(at: Prepared, size: Size3) -> float:
    return (1 + at.codec.stride.time * (size.time - 1)) / at.store.fps


def _uncompressed(at: Prepared, size: Size3) -> int:
    patch = at.model.experiment.backbone.geometry.patch
    across = ceil_div(size.height, patch.height) * ceil_div(size.width, patch.width)
    return ceil_div(size.time, patch.time) * across
