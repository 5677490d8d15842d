"""`measure`: what a model's memory gives back, against floors and the codec's ceiling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import attrs
from attrs import define

from .. import edge
from ..data.record import Record
from ..data.store import Store
from ..model import Model
from ..train.run import versions
from .assemble import (
    Seen,
    clip_row,
    distances,
    long_row,
    metric_infos,
    missing_infos,
    rates_of,
    retrievals,
)
from .gain import clip_gain, gain_over_clips
from .prepare import QUERIES, Prepared, evaluating
from .quality import Kept, clip_quality, foreign_quality
from .result import LongRow, MeasureResult

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
    """Give the quality of retrieval and the gain of the memory over every clip of a store.

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
    """Give the clips that last as long as the greater length, or longer."""
    longer = at.longer()
    return [r for r in at.records() if longer and r.latents >= longer.length]


def _long(at: Prepared, tick: _Ticks) -> Iterator[LongRow]:
    longer = at.longer()
    for record in _long_records(at) if longer else ():
        assert longer is not None
        tick.clip = f"{record.name}, {longer.model.experiment.measure.long_seconds:g} s"
        yield long_row(longer, record, clip_quality(longer, record, tick, masked=False))
