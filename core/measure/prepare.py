"""What measuring works with: the parts of an experiment, built once, and clips as windows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self, TypeVar

import attrs
import torch
from attrs import field, frozen
from torch import Tensor, nn

from ..data.store import Record, Store, check_fits
from ..errors import LongtakeError, UserError
from ..interfaces.codec import Codec
from ..interfaces.masker import Masker
from ..interfaces.metric import Metric
from ..interfaces.retriever import Retriever
from ..interfaces.spec import CodecSpec, MaskerSpec, MetricSpec, PluginSpec, RetrieverSpec
from ..model import Model, all_needs, build_retriever, compressor_needs, learned_retriever
from ..plugin_errors import one_line, plugin_error
from ..registry import build, registry
from ..values.draws import step_generator
from ..values.grid import Size3
from ..values.history import History
from ..values.text import Text
from .linear import NAME as LINEAR
from .linear import LinearCode, LinearGuide
from .result import MetricInfo


@frozen(eq=False, kw_only=True)
class MeasureSetup:
    """A model, a store, and what the experiment measures with, built on the model's device.

    One setup serves `measure` and then all that shows its clips (`make_strips`, `make_sliders`),
    so that nothing is built twice and no frame is retrieved twice.

    Attributes:
        retrievers, metrics: by a name each, as reports print it.
            A metric that fails while it measures leaves them, see `fail`.
        infos: of all metrics of the experiment by name: those that are not, or no longer, in
            `metrics` say why.
        seed: of Ω and noise.
        length: latent frames of a window: clips are measured from their beginning on.
        retrieved: the windows that `measure` got from learned retrievers, latents `[C, T, H, W]`
            on the CPU by clip id and retriever.
    """

    model: Model
    store: Store
    codec: Codec[CodecSpec]
    masker: Masker[MaskerSpec]
    retrievers: Mapping[str, Retriever[RetrieverSpec]]
    metrics: dict[str, Metric[MetricSpec]]
    infos: dict[str, MetricInfo]
    null_text: Text
    device: torch.device
    seed: int
    length: int
    retrieved: dict[tuple[str, str], Tensor] = field(factory=dict)

    @classmethod
    def build(
        cls,
        model: Model,
        store: Store,
        seed: int | None = None,
        linear: LinearCode | None = None,
    ) -> Self:
        """Build everything, after what cannot be measured was refused.

        Args:
            model: what to measure, on its device.
            store: clips with pixels and all LR rates of the experiment.
            seed: of Ω and noise; None: `measure.seed` of the experiment.
            linear: of the guide `linear`; None: it is not measured.

        Raises:
            UserError: the experiment has no memory, the store was made for something else or
                holds mirrored clips only, its frames are too small for a metric, no metric can be
                measured here, or `measure.seconds` are less than a frame.
        """
        experiment = model.experiment
        device = next(model.backbone.parameters()).device
        geometry = experiment.backbone.geometry
        if not experiment.compressors:
            raise UserError(f"{experiment.name} has no compressor, so no memory to measure")
        codec: Codec[CodecSpec] = build(experiment.backbone.codec)
        check_fits(experiment, store, all_needs(experiment).rates, codec=codec)
        if not any(record.original for record in store.records):
            raise UserError(
                f"{store.root} holds mirrored clips only, or other variants: there is nothing to "
                "measure"
            )
        store.apply_margin(codec.to(device).eval())
        length = geometry.latents(geometry.frames(experiment.measure.seconds, store.fps))
        if length < 1:
            raise UserError(f"measure.seconds {experiment.measure.seconds:g}: less than a frame")
        metrics, infos = _build_metrics(unique_names(experiment.metrics))
        _check_metrics(store, metrics, infos, codec.stride)
        specs = unique_names(experiment.retrievers)
        retrievers = {name: build_retriever(spec) for name, spec in specs.items()}
        if linear is not None:
            retrievers[LINEAR] = LinearGuide(linear.to(device))
        return cls(
            model=model,
            store=store,
            codec=codec,
            masker=build(experiment.masker).fit_to(model.backbone.geometry),
            retrievers=retrievers,
            metrics=metrics,
            infos=infos,
            null_text=store.null_text().to(device),
            device=device,
            seed=experiment.measure.seed if seed is None else seed,
            length=length,
        )

    def longer(self) -> Self | None:
        """Return the same with windows of `measure.long_seconds`; None where that is no longer."""
        experiment = self.model.experiment
        geometry = experiment.backbone.geometry
        frames = geometry.frames(experiment.measure.long_seconds, self.store.fps)
        length = geometry.latents(frames)
        return attrs.evolve(self, length=length) if length > self.length else None

    @property
    def main(self) -> str:
        """The name of the first retriever that reads memory."""
        experiment = self.model.experiment
        spec = learned_retriever(experiment)
        return next(n for n, one in unique_names(experiment.retrievers).items() if one == spec)

    def fail(self, name: str, error: BaseException) -> None:
        """Leave a metric that failed out of what is still to measure, and keep why.

        Raises:
            LongtakeError: it was the last one.
        """
        del self.metrics[name]
        self.infos[name] = attrs.evolve(self.infos[name], failed=failure(error))
        if not self.metrics:
            raise LongtakeError(_why_none(self.infos))

    @property
    def missing(self) -> tuple[MetricInfo, ...]:
        """The metrics of the experiment that were not measured, each with its reason."""
        return tuple(info for name, info in self.infos.items() if name not in self.metrics)

    @property
    def learned(self) -> dict[str, Retriever[RetrieverSpec]]:
        """The retrievers that read memory, by name."""
        return {name: r for name, r in self.retrievers.items() if r.learned}

    @property
    def reads_pixels(self) -> bool:
        """Whether a compressor reads pixels; where none does, masking them would be waste."""
        return compressor_needs(self.model.experiment).pixels

    def records(self) -> list[Record]:
        """Return the clips to measure: all that are no variant of another."""
        return [record for record in self.store.records if record.original]

    def partners(self) -> dict[str, Record]:
        """Return for each clip, by id, the next one of its size; clips alone have none."""
        groups: dict[Size3, list[Record]] = defaultdict(list)
        for record in self.records():
            groups[self.size(record)].append(record)
        return {
            own.id: other
            for group in groups.values()
            if len(group) > 1
            for own, other in zip(group, [*group[1:], group[0]], strict=True)
        }

    def size(self, record: Record) -> Size3:
        """Return the latent size of a clip's window."""
        time = min(record.latents, self.length)
        return Size3(time=time, height=record.height, width=record.width)

    def history(self, record: Record, *, pixels: bool) -> History:
        """Return a clip's window, from its beginning: `length` latents, or all of a shorter one."""
        rates = sorted(all_needs(self.model.experiment).rates)
        length = self.size(record).time
        return self.store.window(record, 0, length, rates, pixels).to(self.device)

    def text(self, record: Record) -> Text:
        """Return the embedded caption of a clip's window."""
        return self.store.text(record, 0, self.size(record).time).to(self.device)

    def generator(self, record: Record, purpose: str) -> torch.Generator:
        """Return the random numbers of a clip for a purpose, the same in every run of a seed."""
        return step_generator(self.seed, 0, 0, f"measure {purpose} {record.id}")


def _build_metrics(
    specs: Mapping[str, MetricSpec],
) -> tuple[dict[str, Metric[MetricSpec]], dict[str, MetricInfo]]:
    """Return the metrics that can run here, and what all of them say of themselves, by name.

    One that fails, be it only to say its title, is not measured; the others are.
    """
    metrics: dict[str, Metric[MetricSpec]] = {}
    infos: dict[str, MetricInfo] = {}
    for name, spec in specs.items():
        plugin = registry().find(spec).name
        try:
            metric = build(spec)
            infos[name] = _metric_info(name, plugin, metric)
            _ = metric.least
        except Exception as error:  # a plugin may raise anything
            infos[name] = MetricInfo(
                name=name, plugin=plugin, title=name.upper(), unit="", goal="higher",
                verb=Metric.verb, quantity=name.upper(), failed=failure(error),
            )  # fmt: skip
        if not infos[name].reason:
            metrics[name] = metric
    return metrics, infos


def _metric_info(name: str, plugin: str, metric: Metric[MetricSpec]) -> MetricInfo:
    title = metric.title or name.upper()
    return MetricInfo(
        name=name,
        plugin=plugin,
        title=title,
        unit=metric.unit,
        goal=metric.goal,
        verb=metric.verb,
        quantity=metric.quantity or title,
        needs=metric.missing(),
    )


def failure(error: BaseException) -> str:
    """Return how a metric failed, to follow "it"."""
    known = error if isinstance(error, LongtakeError) else plugin_error(error)
    return f"failed: {known or one_line(error)}"


def _why_none(infos: Mapping[str, MetricInfo]) -> str:
    reasons = "; ".join(f"{name}: {info.reason}" for name, info in infos.items())
    return f"none of the experiment's metrics can be measured here: {reasons}"


def _check_metrics(
    store: Store,
    metrics: Mapping[str, Metric[MetricSpec]],
    infos: Mapping[str, MetricInfo],
    stride: Size3,
) -> None:
    """Refuse an experiment none of whose metrics runs here, and clips too small for one that does.

    Raises:
        UserError: with what is missing, or with metric and clip.
    """
    if not metrics:
        raise UserError(_why_none(infos))
    for record in store.records:
        size = (record.height * stride.height, record.width * stride.width)
        for name, metric in metrics.items():
            if min(size) < metric.least:
                raise UserError(
                    f"{name} needs frames of {metric.least}x{metric.least} or more, but "
                    f"{record.name} has {size[0]}x{size[1]}: change its spec, or leave it out"
                )


S = TypeVar("S", bound=PluginSpec)


def unique_names(specs: Sequence[S]) -> dict[str, S]:
    """Return each different spec by a name: its plugin's, and the fields in which it is alone.

    Two `flow` of different steps are `flow steps=1` and `flow steps=20`.
    """
    different = list(dict.fromkeys(specs))
    return {
        _unique_name(spec, [other for other in different if type(other) is type(spec)]): spec
        for spec in different
    }


def _unique_name(spec: PluginSpec, same_class: Sequence[PluginSpec]) -> str:
    values = [
        f"{attribute.name}={getattr(spec, attribute.name)}"
        for attribute in attrs.fields(type(spec))
        if len({getattr(other, attribute.name) for other in same_class}) > 1
    ]
    return " ".join([registry().find(spec).name, *values])


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
