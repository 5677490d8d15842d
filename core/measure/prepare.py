"""What measuring needs at hand: the parts of the experiment, built, and clips as windows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self, TypeVar

import attrs
import torch
from attrs import frozen
from torch import nn

from ..data.store import Record, Store, check_fits
from ..errors import UserError
from ..interfaces.codec import Codec
from ..interfaces.masker import Masker
from ..interfaces.metric import Metric
from ..interfaces.retriever import Retriever
from ..interfaces.spec import CodecSpec, MaskerSpec, MetricSpec, PluginSpec, RetrieverSpec
from ..model import Model, all_needs, build_retriever, compressor_needs, learned_retriever
from ..registry import build, registry
from ..values.draws import step_generator
from ..values.grid import Size3
from ..values.history import History
from ..values.text import Text

# ⟦core/measure/checks.py⟧ What cannot be measured is refused before any work is done.


Metrics = Mapping[str, Metric[MetricSpec]]


def check_store(model: Model, store: Store) -> None:
    """Refuse a store that does not fit the experiment.

    Raises:
        UserError: it was made for something else, or holds mirrored clips only.
    """
    check_fits(model.experiment, store, all_needs(model.experiment).rates, decodes=True)
    if all(record.mirror for record in store.records):
        raise UserError(f"{store.root} holds mirrored clips only: there is nothing to measure")


def check_metrics(store: Store, measured: Metrics, missing: Metrics, stride: Size3) -> None:
    """Refuse frames that a metric cannot compare.

    Raises:
        UserError: no metric can be measured here, or a clip is too small for one.
    """
    if not measured:
        lacking = "; ".join(f"{name} needs {metric.lacks()}" for name, metric in missing.items())
        raise UserError(f"none of the experiment's metrics can be measured here: {lacking}")
    for record in store.records:
        size = (record.height * stride.height, record.width * stride.width)
        for name, metric in measured.items():
            if min(size) < metric.least:
                raise UserError(
                    f"{name} needs frames of {metric.least}x{metric.least} or more, but "
                    f"{record.name} has {size[0]}x{size[1]}: change its spec, or leave it out"
                )


QUERIES = 6  # masked queries for each clip


@frozen(eq=False, kw_only=True)
class Prepared:
    """A model, a store, and what the experiment measures with, on the model's device."""

    model: Model
    store: Store
    codec: Codec[CodecSpec]
    masker: Masker[MaskerSpec]
    retrievers: Mapping[str, Retriever[RetrieverSpec]]
    metrics: Mapping[str, Metric[MetricSpec]]
    missing: Mapping[str, Metric[MetricSpec]]  # metrics that lack something here
    null_text: Text
    device: torch.device
    seed: int
    length: int  # latents asked for

    @classmethod
    def of(cls, model: Model, store: Store, seed: int | None = None) -> Self:
        """Build all parts.

        Raises:
            UserError: the experiment has no memory, the store was made for something else, keeps
                no frames or frames too small for a metric, or no metric can be measured here.
        """
        experiment, device = model.experiment, device_of(model)
        geometry = experiment.backbone.geometry
        if not experiment.compressors:
            raise UserError(f"{experiment.name} has no compressor, so no memory to measure")
        codec: Codec[CodecSpec] = build(experiment.backbone.codec).to(device).eval()
        check_store(model, store)
        store.teach(codec)
        length = geometry.latents(geometry.frames(experiment.measure.seconds, store.fps))
        if length < 1:
            raise UserError(f"measure.seconds {experiment.measure.seconds:g}: less than a frame")
        metrics = {name: build(spec) for name, spec in named(experiment.metrics).items()}
        missing = {name: metric for name, metric in metrics.items() if metric.lacks()}
        measured = {name: metric for name, metric in metrics.items() if name not in missing}
        check_metrics(store, measured, missing, codec.stride)
        return cls(
            model=model,
            store=store,
            codec=codec,
            masker=build(experiment.masker),
            retrievers={n: build_retriever(s) for n, s in named(experiment.retrievers).items()},
            metrics=measured,
            missing=missing,
            null_text=store.null_text().to(device),
            device=device,
            seed=experiment.measure.seed if seed is None else seed,
            length=length,
        )

    @property
    def main(self) -> str:
        """The name of the first retriever that reads memory."""
        spec = learned_retriever(self.model.experiment)
        return next(n for n, s in named(self.model.experiment.retrievers).items() if s == spec)

    @property
    def learned(self) -> dict[str, Retriever[RetrieverSpec]]:
        """The retrievers that read memory, by name."""
        return {name: r for name, r in self.retrievers.items() if r.learned}

    def records(self) -> list[Record]:
        """Return the clips to measure: all that are no mirror image of another."""
        return [record for record in self.store.records if not record.mirror]

    def longer(self) -> Self | None:
        """Return the same with windows of `measure.long_seconds`; None where that is no longer."""
        experiment = self.model.experiment
        geometry = experiment.backbone.geometry
        frames = geometry.frames(experiment.measure.long_seconds, self.store.fps)
        length = geometry.latents(frames)
        return attrs.evolve(self, length=length) if length > self.length else None

    def size(self, record: Record) -> Size3:
        """Return the latent size of the window of a clip."""
        time = min(record.latents, self.length)
        return Size3(time=time, height=record.height, width=record.width)

    def history(self, record: Record, *, pixels: bool) -> History:
        """Return the window of a clip from its beginning: all of it, or as long as was asked."""
        rates = sorted(all_needs(self.model.experiment).rates)
        length = self.size(record).time
        return self.store.window(record, 0, length, rates, pixels).to(self.device)

    @property
    def reads_pixels(self) -> bool:
        """Whether a compressor reads pixels; where none does, masking them would be waste."""
        return compressor_needs(self.model.experiment).pixels

    def text(self, record: Record) -> Text:
        """Return the caption of the window of a clip."""
        return self.store.text(record, 0, self.size(record).time).to(self.device)

    def generator(self, record: Record, purpose: str) -> torch.Generator:
        """Return the random numbers of a clip for a purpose, the same in every run of a seed."""
        return step_generator(self.seed, 0, 0, f"measure {purpose} {record.id}")

    def partners(self) -> dict[str, Record]:
        """Return for each clip, by id, the next one of its size; clips alone have none."""
        groups: dict[Size3, list[Record]] = defaultdict(list)
        for record in self.records():
            groups[self.size(record)].append(record)
        full = [group for group in groups.values() if len(group) > 1]
        return {
            mine.id: other
            for group in full
            for mine, other in zip(group, [*group[1:], group[0]], strict=True)
        }


def device_of(model: Model) -> torch.device:
    """Return where a model is."""
    return next(model.backbone.parameters()).device


S = TypeVar("S", bound=PluginSpec)


def named(specs: Sequence[S]) -> dict[str, S]:
    """Return specs by a name each: the plugin's, and the fields that tell it from its like."""
    kept = list(dict.fromkeys(specs))
    return {_name(spec, [s for s in kept if type(s) is type(spec)]): spec for spec in kept}


def _name(spec: PluginSpec, alike: Sequence[PluginSpec]) -> str:
    odd = [
        f"{a.name}={getattr(spec, a.name)}"
        for a in attrs.fields(type(spec))
        if len({getattr(s, a.name) for s in alike}) > 1
    ]
    return " ".join([registry().find(spec).name, *odd])


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Switch a model to evaluation without gradients, and back afterwards."""
    parts: tuple[nn.Module, ...] = (model.backbone, model.encoder)
    before = [part.training for part in parts]
    for part in parts:
        part.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in zip(parts, before, strict=True):
            part.train(training)
