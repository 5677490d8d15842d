"""What `measure` found, as plain values: written as JSON, shown in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from attrs import field, frozen

from .figures import Interval
from .quantities import AgeBin as AgeBin
from .quantities import Distance as Distance
from .quantities import MetricInfo as MetricInfo
from .quantities import Quality as Quality
from .quantities import Retrieval as Retrieval

FORMAT = 2


@frozen(kw_only=True)
class GainFigures:
    """Losses with the true, another clip's and no memory, and their differences over clips.

    Attributes:
        true, shuffled, none: the losses.
        gain: none − true; above 0 the memory helps.
        specific: shuffled − true; above 0 it is this clip's memory that helps.
        foreign: shuffled − none; at or above 0 another clip's memory is no help, as it should be.
        draws: of Ω, t and noise for each clip.
        alone: clips without another one of their size, so without a shuffled figure.
    """

    true: Interval
    none: Interval
    gain: Interval
    shuffled: Interval | None
    specific: Interval | None
    foreign: Interval | None
    draws: int
    alone: int


@frozen(kw_only=True)
class ClipRow:
    """One clip: what was measured of it, and its own figures.

    Attributes:
        size: latent size as time × height × width; `seconds` of video they stand for.
        cut: the clip is longer than what was measured.
        short: it is shorter than was asked for, and was used whole.
        tokens: context length of its memory; `parts` of each part; `uncompressed` of its latents.
        unmasked, masked: mean over its frames by retriever and metric.
        gain, specific, foreign: mean over draws, as in GainFigures.
        same: as `masked`, of the same frames from the memory of the clean history.
        ages: of the main retriever, mean by metric over the frames of each age bin, by its start
            in seconds before the end.
        swapped: of the main retriever by metric, from the memory of another clip of this size.
    """

    id: str
    name: str
    caption: str
    size: str
    seconds: float
    cut: bool
    short: bool
    tokens: int
    uncompressed: int
    unmasked: Mapping[str, Mapping[str, float]]
    masked: Mapping[str, Mapping[str, float]]
    gain: float
    specific: float | None
    foreign: float | None
    parts: Mapping[str, int] = field(factory=dict)
    same: Mapping[str, Mapping[str, float]] = field(factory=dict)
    ages: Mapping[str, Mapping[str, float]] = field(factory=dict)
    swapped: Mapping[str, float] | None = None


@frozen(kw_only=True)
class LongRow:
    """One clip at the greater length: latent size, seconds, context lengths, unmasked figures."""

    id: str
    name: str
    size: str
    seconds: float
    tokens: int
    uncompressed: int
    unmasked: Mapping[str, Mapping[str, float]]


@frozen(kw_only=True)
class MeasureResult:
    """All that `measure` found of one model on one store.

    Attributes:
        main: the name of the retriever that the verdict is about: the first that reads memory.
        retrievals: the ceiling, then all retrievers in the order of the spec.
        distances: of the main retriever from floors, ceiling and other retrievers, unmasked.
        missing: metrics of the experiment that could not be measured here, and why.
        rates: compression rates that the compressors name, as `4x4x2`.
        long: clips that have `long_asked` seconds, measured at that length, too.
        spec: the experiment, resolved.
        asked: seconds of history asked for; `queries` masked queries for each clip.
        mirrored: mirrored clips of the store, which are never measured.
        took: seconds that measuring took.
    """

    experiment: str
    run: str
    step: int | None
    store: str
    device: str
    main: str
    metrics: tuple[MetricInfo, ...]
    missing: tuple[MetricInfo, ...]
    rates: tuple[str, ...]
    retrievals: tuple[Retrieval, ...]
    distances: tuple[Distance, ...]
    gain: GainFigures
    clips: tuple[ClipRow, ...]
    long: tuple[LongRow, ...]
    asked: float
    long_asked: float
    fps: float
    queries: int
    seed: int
    mirrored: int
    took: float
    spec: Mapping[str, Any] = field(repr=False)
    versions: Mapping[str, str] = field(repr=False)

    def retrieval(self, name: str) -> Retrieval:
        """Give the retrieval of that name."""
        return next(found for found in self.retrievals if found.name == name)

    def metric(self, plugin: str) -> MetricInfo | None:
        """Give the first measured metric of a plugin, or None."""
        return next((metric for metric in self.metrics if metric.plugin == plugin), None)

    def to_json(self) -> dict[str, Any]:
        """Give plain data for JSON; figures of metrics that were not measured are null."""
        data = attrs.asdict(self)
        _put_nulls(data, [metric.name for metric in self.missing])
        return {"format": FORMAT, **data}


def _put_nulls(data: dict[str, Any], names: Sequence[str]) -> None:
    retrievals, clips = data["retrievals"], [*data["clips"], *data["long"]]
    qualities = [one[how] for one in retrievals for how in _HOW if one[how]]
    rows = [row for quality in qualities for row in (quality, *quality["ages"])]
    figures = [row["figures"] for row in (*rows, *data["distances"])]
    figures += [one for clip in clips for how in _HOW if how in clip for one in clip[how].values()]
    for found in figures:
        found.update(dict.fromkeys(names))


_HOW = ("unmasked", "masked")
