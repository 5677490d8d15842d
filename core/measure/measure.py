"""`measure`: what a model's memory gives back, against floors and the codec's ceiling."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median, median_low

import attrs
from attrs import define, frozen

from .. import config
from ..data.store import Record
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.metric import merit
from ..tools.device import versions
from ..tools.progress import Report
from ..train.past import PastEncoder
from ..values.grid import Rate, Size3
from .continuations import ClipContinuation, measure_continuations
from .kept import KeptClip, KeptClips
from .linear import NAME as LINEAR
from .linear import LinearGuide
from .prepare import MeasureSetup, evaluating, failure
from .quality import (
    CEILING,
    QUERIES,
    ClipGain,
    ClipQuality,
    clip_gain,
    clip_quality,
    foreign_memory,
    gain_over_clips,
)
from .result import (
    ClipRow,
    CodeInfo,
    ContinuationRow,
    Distance,
    FrameScores,
    GainFigures,
    Interval,
    LongRow,
    MeasureResult,
    Quality,
    RetrieverResult,
    age_width,
    interval,
    quality_over_clips,
)


def measure(
    setup: MeasureSetup,
    *,
    run: str = "",
    step: int | None = None,
    progress: Report | None = None,
    kept: KeptClips | None = None,
    stopped: Callable[[MeasureResult], None] | None = None,
) -> MeasureResult:
    """Measure the quality of retrieval and the gain of the memory over every clip of a store.

    Of each clip that is no variant (mirrored, backwards, at another speed), the first
    `measure.seconds` are the history, shorter clips whole. Every latent frame is asked of the
    memory of the clean history; learned retrievers also give back the Ω of 6 masked queries. Floors
    and the codec's reconstruction are compared with the same original pixels. Clips of
    `measure.long_seconds` are asked a second time, unmasked, at that length. Of a Stage II run
    clips are also cut into past and target, whose loss is measured with the memory of the past. The
    same seed gives the same figures on one device.

    Args:
        setup: of the model and the store; its `retrieved` is filled, so that `make_strips` and
            `make_sliders` show what was measured and need not ask again.
        run: where the model is from, to be reported.
        step: training steps it has seen, to be reported.
        progress: called with done, total and a note.
        kept: where each clip is kept once it is measured, and read from in place of measuring it.
        stopped: called with the result of the clips before, where a later one fails; its
            `unfinished` says how.

    Raises:
        UserError: no retriever reads memory, or a file of the store is damaged.
        LongtakeError: frames are not finite (the message names retriever, clip and maker), or no
            metric is left; one metric that fails is not measured, and `missing` says why.
    """
    clips: list[_MeasuredClip] = []
    long: list[_MeasuredLongClip] = []
    continued: list[ClipContinuation] = []

    def result(unfinished: str = "") -> MeasureResult:
        return _result(setup, clips, long, continued, run=run, step=step, unfinished=unfinished)

    with evaluating(setup.model):
        tick = _ticks(setup, progress)
        try:
            for clip in _measure_clips(setup, tick, kept):
                clips.append(clip)
            for longer in _measure_long_clips(setup, tick, kept):
                long.append(longer)
            continued.extend(_measure_continuations(setup, tick))
        except Exception as error:  # a plugin may raise anything
            if clips and stopped:
                stopped(result(f"{_done(setup, clips, long)}; {tick.clip} {failure(error)}"))
            raise
    return result()


def _done(
    setup: MeasureSetup, clips: Sequence[_MeasuredClip], long: Sequence[_MeasuredLongClip]
) -> str:
    """Return how many clips were measured, in words."""
    text = f"{len(clips)} of {len(setup.records())} clips were measured"
    if len(clips) < len(setup.records()):
        return text
    seconds = setup.model.experiment.measure.long_seconds
    return f"{text}, and {len(long)} of {len(_long_records(setup))} at {seconds:g} s"


def _result(
    setup: MeasureSetup,
    clips: Sequence[_MeasuredClip],
    long: Sequence[_MeasuredLongClip],
    continued: Sequence[ClipContinuation],
    *,
    run: str,
    step: int | None,
    unfinished: str,
) -> MeasureResult:
    """Return what was measured of all clips, or of those before one that failed."""
    for quality in [clip.quality for clip in clips] + [clip.quality for clip in long]:
        quality.keep_metrics(setup.metrics)
    for clip in clips:
        latents = clip.quality.latents
        setup.retrieved.update({(clip.record.id, name): x for name, x in latents.items()})
    experiment, qualities = setup.model.experiment, [clip.quality for clip in clips]
    retrievals = _retriever_results(setup, qualities)
    return MeasureResult(
        experiment=experiment.name,
        run=run,
        step=step,
        store=str(setup.store.root),
        device=str(setup.device),
        main=setup.main,
        metrics=tuple(setup.infos[name] for name in setup.metrics),
        missing=setup.missing,
        rates=_rates(experiment),
        targets=experiment.measure.targets,
        retrievals=retrievals,
        distances=_distances(setup, retrievals, qualities),
        gain=gain_over_clips([clip.gain for clip in clips], experiment.measure.draws),
        continuations=_continuation_figures(setup, continued),
        clips=tuple(_clip_row(setup, clip, continued) for clip in clips),
        long=tuple(_long_row(setup, clip) for clip in long),
        asked=experiment.measure.seconds,
        long_asked=experiment.measure.long_seconds,
        fps=setup.store.fps,
        queries=QUERIES,
        seed=setup.seed,
        mirrored=sum(not record.original for record in setup.store.records),
        took=sum(clip.took for clip in clips) + sum(clip.took for clip in long),
        spec=config.to_json(experiment),
        versions=versions(),
        unfinished=unfinished,
        code=_code_info(setup, [clip.record for clip in clips]),
    )


def _code_info(setup: MeasureSetup, records: Sequence[Record]) -> CodeInfo | None:
    guide = setup.retrievers.get(LINEAR)
    return guide.linear.info(records) if isinstance(guide, LinearGuide) else None


@define
class _Ticks:
    """Counts the parts of the work that are done and reports each."""

    progress: Report | None
    total: int
    clip: str = ""
    done: int = 0

    def __call__(self, note: str, count: int = 1) -> None:
        self.done += count
        if self.progress:
            self.progress(self.done, self.total, f"{self.clip}: {note}")


def _ticks(setup: MeasureSetup, progress: Report | None) -> _Ticks:
    clips, long_clips = len(setup.records()), len(_long_records(setup))
    parts = _parts(setup) + (setup.model.experiment.finetune is not None)
    return _Ticks(progress, parts * clips + _long_parts(setup) * long_clips)


def _long_parts(setup: MeasureSetup) -> int:
    """Return the parts of the work of one clip at the greater length: ceiling, retrievers."""
    return 1 + len(setup.retrievers)


def _parts(setup: MeasureSetup) -> int:
    """Return the parts of the work of one clip."""
    return _long_parts(setup) + QUERIES + 1


@frozen(eq=False, kw_only=True)
class _MeasuredClip:
    """All that was measured of one clip."""

    record: Record
    quality: ClipQuality
    gain: ClipGain
    took: float


def _measure_clips(
    setup: MeasureSetup, tick: _Ticks, kept: KeptClips | None
) -> Iterator[_MeasuredClip]:
    partners = setup.partners()
    for record in setup.records():
        tick.clip = record.name
        found = kept and kept.read(record, setup.length, setup)
        if found and found.gain:
            tick("kept", _parts(setup))
            gain, quality, took = found.gain, found.quality, found.took
            yield _MeasuredClip(record=record, quality=quality, gain=gain, took=took)
            continue
        began = time.perf_counter()
        partner = partners.get(record.id)
        foreign = foreign_memory(setup, record, partner) if partner else None
        quality = clip_quality(setup, record, tick, foreign=foreign)
        gain = clip_gain(setup, record, foreign)
        took = time.perf_counter() - began
        _keep(kept, record, setup.length, KeptClip(quality=quality, gain=gain, took=took))
        tick("memory_gain")
        yield _MeasuredClip(record=record, quality=quality, gain=gain, took=took)


def _keep(kept: KeptClips | None, record: Record, length: int, clip: KeptClip) -> None:
    """Keep a clip; where the disk refuses, that is said, and measuring goes on."""
    try:
        if kept:
            kept.write(record, length, clip)
    except UserError as error:
        logging.getLogger(__name__).warning("%s: what is measured is not kept", error)


def _long_records(setup: MeasureSetup) -> list[Record]:
    """Return the clips that last as long as the greater length, or longer."""
    longer = setup.longer()
    return [r for r in setup.records() if longer and r.latents >= longer.length]


@frozen(eq=False, kw_only=True)
class _MeasuredLongClip:
    """What was measured of one clip at the greater length."""

    record: Record
    size: Size3
    quality: ClipQuality
    took: float


def _measure_long_clips(
    setup: MeasureSetup, tick: _Ticks, kept: KeptClips | None
) -> Iterator[_MeasuredLongClip]:
    longer = setup.longer()
    for record in _long_records(setup) if longer else ():
        assert longer is not None
        tick.clip = f"{record.name}, {setup.model.experiment.measure.long_seconds:g} s"
        size = longer.size(record)
        found = kept and kept.read(record, longer.length, setup)
        if found:
            tick("kept", _long_parts(setup))
            quality, took = found.quality, found.took
            yield _MeasuredLongClip(record=record, size=size, quality=quality, took=took)
            continue
        began = time.perf_counter()
        quality = clip_quality(longer, record, tick, masked=False)
        took = time.perf_counter() - began
        _keep(kept, record, longer.length, KeptClip(quality=quality, gain=None, took=took))
        yield _MeasuredLongClip(record=record, size=size, quality=quality, took=took)


def _measure_continuations(setup: MeasureSetup, tick: _Ticks) -> Iterator[ClipContinuation]:
    """Yield how clips go on, of a Stage II run."""
    experiment = setup.model.experiment
    if experiment.finetune is None:
        return
    ends = PastEncoder.of(experiment, setup.store, setup.device)
    for clip in measure_continuations(setup, experiment.finetune, ends):
        tick.clip = clip.record.name
        tick("continuation")
        yield clip


def _continuation_figures(
    setup: MeasureSetup, clips: Sequence[ClipContinuation]
) -> GainFigures | None:
    draws = setup.model.experiment.measure.draws
    return gain_over_clips([clip.losses for clip in clips], draws) if clips else None


def _continuation_row(
    setup: MeasureSetup, record: Record, clips: Sequence[ClipContinuation]
) -> ContinuationRow | None:
    step = setup.codec.stride.time / setup.store.fps
    for clip in clips:
        if clip.record is record:
            return ContinuationRow(
                past=clip.past * step,
                target=clip.target * step,
                true=clip.losses.true,
                none=clip.losses.none,
                shuffled=clip.losses.shuffled,
            )
    return None


def _long_row(setup: MeasureSetup, clip: _MeasuredLongClip) -> LongRow:
    size, quality = clip.size, clip.quality
    return LongRow(
        id=clip.record.id,
        name=clip.record.name,
        size=str(size),
        seconds=_seconds(setup, size),
        tokens=quality.tokens,
        uncompressed=_uncompressed(setup, size),
        unmasked={name: scores.means() for name, scores in quality.unmasked.items()},
    )


def _rates(experiment: Experiment) -> tuple[str, ...]:
    """Return the compression rates that the compressors' specs name, in their order."""
    values = [v for spec in experiment.compressors for v in attrs.astuple(spec, recurse=False)]
    return tuple(dict.fromkeys(str(value) for value in values if isinstance(value, Rate)))


def _retriever_results(
    setup: MeasureSetup, clips: Sequence[ClipQuality]
) -> tuple[RetrieverResult, ...]:
    """Return the ceiling, every retriever, and the main one of each part alone, over clips."""
    parts = [name for name in clips[0].unmasked if name not in (CEILING, *setup.retrievers)]
    names = (CEILING, *setup.retrievers, *parts)
    return tuple(_retriever_result(setup, name, clips) for name in names)


def _retriever_result(
    setup: MeasureSetup, name: str, clips: Sequence[ClipQuality]
) -> RetrieverResult:
    numbers = [n for clip in clips if (n := clip.numbers.get(name)) is not None]
    seconds = [clip.seconds[name] for clip in clips if name in clip.seconds]
    masked = [clip.masked[name] for clip in clips if name in clip.masked]
    return RetrieverResult(
        name=name,
        kind=_kind(setup, name),
        unmasked=_over_clips(setup, [clip.unmasked[name] for clip in clips]),
        masked=_over_clips(setup, masked) if masked else None,
        numbers=median_low(numbers) if numbers else None,
        seconds=median(seconds) if seconds else None,
        samples=name in setup.retrievers and setup.retrievers[name].samples,
    )


def _kind(setup: MeasureSetup, name: str) -> str:
    if name == CEILING:
        return "ceiling"
    retriever = setup.retrievers.get(name)
    if retriever is None:
        return "part"
    if retriever.learned:
        return "learned"
    return "guide" if retriever.guide else "floor"


def _over_clips(setup: MeasureSetup, clips: Sequence[FrameScores]) -> Quality:
    return quality_over_clips(clips, fps=setup.store.fps, width=_age_width(setup))


def _age_width(setup: MeasureSetup) -> float:
    return age_width(setup.model.experiment.measure.seconds)


def _distances(
    setup: MeasureSetup, retrievals: Sequence[RetrieverResult], clips: Sequence[ClipQuality]
) -> tuple[Distance, ...]:
    """Return how much better the main retriever is than every other one, paired by clip."""
    return tuple(
        Distance(
            name=other.name,
            kind=other.kind,
            figures={name: _distance(setup, name, other.name, clips) for name in setup.metrics},
        )
        for other in retrievals
        if other.name != setup.main and other.kind != "part"
    )


def _distance(
    setup: MeasureSetup, metric: str, other: str, clips: Sequence[ClipQuality]
) -> Interval:
    goal = setup.metrics[metric].goal

    def clip_merit(clip: ClipQuality, retriever: str) -> float:
        return merit(goal, clip.unmasked[retriever].means()[metric])

    return interval([clip_merit(clip, setup.main) - clip_merit(clip, other) for clip in clips])


def _clip_row(
    setup: MeasureSetup, clip: _MeasuredClip, continued: Sequence[ClipContinuation]
) -> ClipRow:
    record, quality, gain = clip.record, clip.quality, clip.gain
    size, width = setup.size(record), _age_width(setup)
    ages = quality.unmasked[setup.main].means_by_age(setup.store.fps, width)
    return ClipRow(
        id=record.id,
        name=record.name,
        caption=record.caption,
        size=str(size),
        seconds=_seconds(setup, size),
        cut=record.latents > size.time,
        short=size.time < setup.length,
        tokens=quality.tokens,
        parts=quality.parts,
        uncompressed=_uncompressed(setup, size),
        unmasked={name: scores.means() for name, scores in quality.unmasked.items()},
        masked={name: scores.means() for name, scores in quality.masked.items()},
        gain=gain.gain,
        specific=gain.specific,
        foreign=gain.foreign,
        same={n: quality.unmasked[n].like(s).means() for n, s in quality.masked.items()},
        ages={f"{number * width:g}": means for number, means in ages.items()},
        swapped=quality.foreign.means() if quality.foreign else None,
        continuation=_continuation_row(setup, record, continued),
    )


def _seconds(setup: MeasureSetup, size: Size3) -> float:
    return (1 + setup.codec.stride.time * (size.time - 1)) / setup.store.fps


def _uncompressed(setup: MeasureSetup, size: Size3) -> int:
    return setup.model.experiment.backbone.geometry.tokens(size)
