"""Experiment: everything that a run depends on, as one value (design §4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from attrs import field, frozen

from .grid import Rate
from .spec import (
    BackboneSpec,
    CompressorSpec,
    MaskerSpec,
    MetricSpec,
    RetrieverSpec,
    doc,
    each,
    instance_of,
)
from .stages import CacheSpec as CacheSpec
from .stages import MeasureSpec as MeasureSpec
from .training import TrainSpec as TrainSpec


@frozen(kw_only=True)
class Experiment:
    """A backbone, its memory, and how they are cached, trained and measured."""

    name: str = field(
        validator=instance_of(str), metadata=doc("what runs and reports call the experiment")
    )
    backbone: BackboneSpec = field(
        validator=instance_of(BackboneSpec),
        metadata=doc("the video DiT; implies codec, text encoder and fps"),
    )
    compressors: tuple[CompressorSpec, ...] = field(
        validator=each(instance_of(CompressorSpec)),
        metadata=doc(
            "encoders whose tokens stand side by side in one memory; none: Stage 0, a video model"
        ),
    )
    masker: MaskerSpec = field(
        validator=instance_of(MaskerSpec), metadata=doc("how Stage I hides all frames but Ω")
    )
    retrievers: tuple[RetrieverSpec, ...] = field(
        validator=each(instance_of(RetrieverSpec), at_least=1),
        metadata=doc("what `measure` compares; the first that reads memory is what others use"),
    )
    metrics: tuple[MetricSpec, ...] = field(
        validator=each(instance_of(MetricSpec), at_least=1), metadata=doc("figures of a frame")
    )
    cache: CacheSpec = field(
        default=CacheSpec(), validator=instance_of(CacheSpec), metadata=doc("the latent store")
    )
    train: TrainSpec = field(
        default=TrainSpec(),
        validator=instance_of(TrainSpec),
        metadata=doc("Stage I, or Stage 0 where no compressor is named"),
    )
    measure: MeasureSpec = field(
        default=MeasureSpec(), validator=instance_of(MeasureSpec), metadata=doc("measuring")
    )

    @property
    def remembers(self) -> bool:
        """Whether there is a memory; without one, training is Stage 0."""
        return bool(self.compressors)

    def __attrs_post_init__(self) -> None:
        if len(set(self.compressors)) < len(self.compressors):
            raise ValueError("two compressors are the same: the second would remember nothing new")
        self.backbone.check_rates(rate for spec in self.compressors for rate in _rates(spec))


def _rates(value: Any) -> Iterator[Rate]:
    """Give the rates that a spec names, and those of the specs in it."""
    if isinstance(value, Rate):
        yield value
    elif isinstance(value, tuple):
        for member in value:
            yield from _rates(member)
    elif attrs.has(type(value)):
        for attribute in attrs.fields(type(value)):
            yield from _rates(getattr(value, attribute.name))
