"""`measure`: what a model's memory gives back, against floors and the codec's ceiling."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from attrs import define

from .. import edge
from ..data.store import Store
from ..model import Model
from ..scene import learned_retriever
from ..train.run import versions
from .assemble import Seen, clip_row, distances, metric_infos, retrievals
from .gain import clip_gain, gain_over_clips
from .prepare import QUERIES, Prepared, evaluating, named
from .quality import clip_quality
from .result import MeasureResult

Progress = Callable[[int, int, str], None]


def measure(
    model: Model,
    store: Store,
    *,
    seed: int | None = None,
    run: str = "",
    step: int | None = None,
    progress: Progress | None = None,
) -> MeasureResult:
    """Give the quality of retrieval and the gain of the memory over every clip of a store.

    Of each clip that is no mirror image, the first `measure.seconds` are the history, shorter
    clips whole. Every latent frame is asked of the memory of the clean history; learned
    retrievers also give back the Ω of 6 masked queries. Floors and the codec's reconstruction are
    compared with the same original pixels. The same seed gives the same figures on one device.

    Args:
        model: what to measure, on its device.
        store: clips with pixels and all LR rates of the experiment.
        seed: of Ω and noise; default: `measure.seed` of the experiment.
        run: where the model is from, to be reported.
        step: training steps it has seen, to be reported.
        progress: called with done, total and a note.

    Raises:
        UserError: the store was made for something else or keeps no frames, or no retriever of
            the experiment reads memory.
        LongtakeError: a figure is not finite; the message names retriever and clip.
    """
    began = time.perf_counter()
    experiment = model.experiment
    spec = learned_retriever(model.experiment)
    main = next(n for n, found in named(experiment.retrievers).items() if found == spec)
    with evaluating(model):
        at = Prepared.of(model, store, seed)
        seen = list(_clips(at, progress))
    found = retrievals(at, [one.quality for one in seen])
    return MeasureResult(
        experiment=experiment.name,
        run=run,
        step=step,
        store=str(store.root),
        device=str(at.device),
        main=main,
        metrics=metric_infos(at),
        retrievals=found,
        distances=distances(at, main, found, [one.quality for one in seen]),
        gain=gain_over_clips([one.gain for one in seen], experiment.measure.draws),
        clips=tuple(clip_row(at, one) for one in seen),
        asked=experiment.measure.seconds,
        fps=store.fps,
        queries=QUERIES,
        seed=at.seed,
        mirrored=sum(record.mirror for record in store.records),
        took=time.perf_counter() - began,
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


def _clips(at: Prepared, progress: Progress | None) -> Iterator[Seen]:
    records, partners = at.records(), at.partners()
    parts = 2 + len(at.retrievers) + QUERIES  # ceiling, retrievers, masked queries, gain
    tick = _Ticks(progress, parts * len(records))
    for record in records:
        tick.clip = record.name
        quality = clip_quality(at, record, tick)
        gain = clip_gain(at, record, partners.get(record.id))
        tick("memory_gain")
        yield Seen(record=record, quality=quality, gain=gain)
