"""From single clips to the figures of a result."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median, median_low

from attrs import frozen

from ..data.record import Record
from ..grid import ceil_div
from .figures import Interval, interval
from .gain import ClipGain
from .prepare import Prepared
from .quality import CEILING, ClipQuality
from .result import ClipRow, Distance, MetricInfo, Quality, Retrieval
from .scores import Scores, age_width, over_clips


@frozen(eq=False, kw_only=True)
class Seen:
    """All that was measured of one clip."""

    record: Record
    quality: ClipQuality
    gain: ClipGain


def metric_infos(at: Prepared) -> tuple[MetricInfo, ...]:
    """Give what the metrics say of themselves."""
    found = at.metrics.items()
    return tuple(MetricInfo(name=name, unit=m.unit, higher=m.higher) for name, m in found)


def retrievals(at: Prepared, clips: Sequence[ClipQuality]) -> tuple[Retrieval, ...]:
    """Give the ceiling and every retriever over clips."""
    return tuple(_retrieval(at, name, clips) for name in (CEILING, *at.retrievers))


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
    )


def _kind(at: Prepared, name: str) -> str:
    if name == CEILING:
        return CEILING
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
        if other.name != main
    )


def _distance(
    at: Prepared, metric: str, main: str, other: str, clips: Sequence[ClipQuality]
) -> Interval:
    sign = 1.0 if at.metrics[metric].higher else -1.0
    pairs = [(clip.unmasked[main].means(), clip.unmasked[other].means()) for clip in clips]
    return interval([sign * (mine[metric] - theirs[metric]) for mine, theirs in pairs])


def clip_row(at: Prepared, seen: Seen) -> ClipRow:
    """Give the row of one clip."""
    record, quality, gain = seen.record, seen.quality, seen.gain
    size, geometry = at.size(record), at.model.experiment.backbone.geometry
    patch, stride = geometry.patch, at.codec.stride.time
    across = ceil_div(size.height, patch.height) * ceil_div(size.width, patch.width)
    return ClipRow(
        id=record.id,
        name=record.name,
        caption=record.caption,
        size=str(size),
        seconds=(1 + stride * (size.time - 1)) / at.store.fps,
        cut=record.latents > size.time,
        short=size.time < at.length,
        tokens=quality.tokens,
        uncompressed=ceil_div(size.time, patch.time) * across,
        unmasked={name: scores.means() for name, scores in quality.unmasked.items()},
        masked={name: scores.means() for name, scores in quality.masked.items()},
        gain=gain.gain,
        specific=gain.specific,
        foreign=gain.foreign,
    )
