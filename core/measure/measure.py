"""`measure`: what a model's memory gives back, against floors and the codec's ceiling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median, median_low

import attrs
from attrs import define, frozen

from .. import config as edge
from ..data.store import Record, Store
from ..experiment import Experiment
from ..interfaces.metric import Metric, merit
from ..interfaces.spec import MetricSpec
from ..model import Model
from ..registry import registry
from ..tools.device import versions
from ..values.grid import Rate, Size3, ceil_div
from .prepare import QUERIES, Prepared, evaluating
from .quality import (
    CEILING,
    ClipGain,
    ClipQuality,
    Kept,
    clip_gain,
    clip_quality,
    foreign_quality,
    gain_over_clips,
)
from .result import (
    ClipRow,
    Distance,
    Interval,
    LongRow,
    MeasureResult,
    MetricInfo,
    Quality,
    Retrieval,
    Scores,
    age_width,
    by_age,
    interval,
    over_clips,
)

# ⟦core/measure/assemble.py⟧ From single clips to the figures of a result.


@frozen(eq=False, kw_only=True)
class Seen:
    """All that was measured of one clip."""

    record: Record
    quality: ClipQuality
    gain: ClipGain


def metric_infos(at: Prepared) -> tuple[MetricInfo, ...]:
    """Return what the measured metrics say of themselves."""
    return tuple(_info(at, name, metric) for name, metric in at.metrics.items())


def missing_infos(at: Prepared) -> tuple[MetricInfo, ...]:
    """Return the metrics that could not be measured here, with what they need."""
    found = at.missing.items()
    return tuple(attrs.evolve(_info(at, n, m), needs=m.lacks()) for n, m in found)


def _info(at: Prepared, name: str, metric: Metric[MetricSpec]) -> MetricInfo:
    plugin = registry().find(metric.spec).name
    title = metric.title or name.upper()
    return MetricInfo(name=name, plugin=plugin, title=title, unit=metric.unit, goal=metric.goal)


def rates_of(experiment: Experiment) -> tuple[str, ...]:
    """Return the compression rates that the compressors' specs name, in their order."""
    values = [v for spec in experiment.compressors for v in attrs.astuple(spec, recurse=False)]
    return tuple(dict.fromkeys(str(value) for value in values if isinstance(value, Rate)))


def retrievals(at: Prepared, clips: Sequence[ClipQuality]) -> tuple[Retrieval, ...]:
    """Return the ceiling, every retriever, and the main one of each part alone, over clips."""
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
    """Return how much better the main retriever is than every other one, paired by clip."""
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
    """Return the row of one clip."""
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
    """Return the row of one clip at the greater length."""
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


Progress = Callable[[int, int, str], None]


def measure(
    model: Model,
    store: Store,
    *,
    seed: int | None = None,
    run: str = "",
    step: int | None = None,
    progress: Progress | None = None,
    keep: Kept | None = None,
) -> MeasureResult:
    """Return the quality of retrieval and the gain of the memory over every clip of a store.

    Of each clip that is no mirror image, the first `measure.seconds` are the history, shorter
    clips whole. Every latent frame is asked of the memory of the clean history; learned
    retrievers also give back the Ω of 6 masked queries. Floors and the codec's reconstruction are
    compared with the same original pixels. Clips of `measure.long_seconds` are asked a second
    time, unmasked, at that length. The same seed gives the same figures on one device.

    Args:
        model: what to measure, on its device.
        store: clips with pixels and all LR rates of the experiment.
        seed: of Ω and noise; default: `measure.seed` of the experiment.
        run: where the model is from, to be reported.
        step: training steps it has seen, to be reported.
        progress: called with done, total and a note.
        keep: filled with the latents that learned retrievers gave, so that `make_strips` and
            `make_scrubs` need not ask again.

    Raises:
        UserError: the experiment has no memory, the store was made for something else or keeps no
            frames, a metric cannot compare its frames, or no retriever reads memory.
        LongtakeError: a figure is not finite; the message names retriever and clip.
    """
    began = time.perf_counter()
    with evaluating(model):
        at = Prepared.of(model, store, seed)
        ticks = _ticks(at, progress)
        seen = list(_clips(at, ticks))
        long = tuple(_long(at, ticks))
    if keep is not None:
        given = ((one.record.id, one.quality.latents) for one in seen)
        keep.update({(clip, n): latents for clip, by in given for n, latents in by.items()})
    result = _result(at, seen, long)
    return attrs.evolve(result, run=run, step=step, took=time.perf_counter() - began)


def _result(at: Prepared, seen: Sequence[Seen], long: tuple[LongRow, ...]) -> MeasureResult:
    experiment, qualities = at.model.experiment, [one.quality for one in seen]
    found = retrievals(at, qualities)
    return MeasureResult(
        experiment=experiment.name,
        run="",
        step=None,
        store=str(at.store.root),
        device=str(at.device),
        main=at.main,
        metrics=metric_infos(at),
        missing=missing_infos(at),
        rates=rates_of(experiment),
        retrievals=found,
        distances=distances(at, at.main, found, qualities),
        gain=gain_over_clips([one.gain for one in seen], experiment.measure.draws),
        clips=tuple(clip_row(at, one) for one in seen),
        long=long,
        asked=experiment.measure.seconds,
        long_asked=experiment.measure.long_seconds,
        fps=at.store.fps,
        queries=QUERIES,
        seed=at.seed,
        mirrored=sum(record.mirror for record in at.store.records),
        took=0.0,
        spec=edge.to_json(experiment),
        versions=versions(),
    )


@define
class _Ticks:
    """Counts parts of the work and tells them on."""

    progress: Progress | None
    total: int
    clip: str = ""
    done: int = 0

    def __call__(self, note: str) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total, f"{self.clip}: {note}")


def _ticks(at: Prepared, progress: Progress | None) -> _Ticks:
    once = 1 + len(at.retrievers)  # ceiling, retrievers
    total = (once + QUERIES + 1) * len(at.records()) + once * len(_long_records(at))
    return _Ticks(progress, total)


def _clips(at: Prepared, tick: _Ticks) -> Iterator[Seen]:
    partners = at.partners()
    for record in at.records():
        tick.clip = record.name
        quality, partner = clip_quality(at, record, tick), partners.get(record.id)
        if partner:
            quality.foreign = foreign_quality(at, record, partner)
        gain = clip_gain(at, record, partner)
        tick("memory_gain")
        yield Seen(record=record, quality=quality, gain=gain)


def _long_records(at: Prepared) -> list[Record]:
    """Return the clips that last as long as the greater length, or longer."""
    longer = at.longer()
    return [r for r in at.records() if longer and r.latents >= longer.length]


def _long(at: Prepared, tick: _Ticks) -> Iterator[LongRow]:
    longer = at.longer()
    for record in _long_records(at) if longer else ():
        assert longer is not None
        tick.clip = f"{record.name}, {longer.model.experiment.measure.long_seconds:g} s"
        yield long_row(longer, record, clip_quality(longer, record, tick, masked=False))
