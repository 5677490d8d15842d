"""What `measure` found, as plain values: written as JSON, shown in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import field, frozen

from .figures import Interval


@frozen(kw_only=True)
class MetricInfo:
    """A metric: its name, unit ("" for none) and whether more is better."""

    name: str
    unit: str
    higher: bool

    @property
    def title(self) -> str:
        """The name as reports print it."""
        return self.name.upper()


@frozen(kw_only=True)
class AgeBin:
    """Quality of the frames `start` to `end` seconds before the end of the history, by metric."""

    start: float
    end: float
    figures: Mapping[str, Interval]


@frozen(kw_only=True)
class Quality:
    """Quality over clips by metric, and by age."""

    figures: Mapping[str, Interval]
    ages: tuple[AgeBin, ...]


@frozen(kw_only=True)
class Retrieval:
    """One retriever over all clips.

    Attributes:
        name: unique among the retrievers of the result.
        kind: learned, floor, guide (a floor that had no codec to pass) or ceiling.
        unmasked: from the memory of the clean history, every frame asked for.
        masked: from the memory of masked histories, Ω asked for; learned ones only.
        numbers: how many numbers a clip is kept as (median over clips), where it is known.
        seconds: median over clips of the time that one latent frame takes, not decoded.
    """

    name: str
    kind: str
    unmasked: Quality
    masked: Quality | None = None
    numbers: int | None = None
    seconds: float | None = None


@frozen(kw_only=True)
class Distance:
    """How much better the main retriever is than another, clip by clip; below 0 it is worse."""

    name: str
    kind: str
    figures: Mapping[str, Interval]


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
        tokens: context length of its memory; `uncompressed` that of its latents.
        unmasked, masked: mean over its frames by retriever and metric.
        gain, specific, foreign: mean over draws, as in GainFigures.
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


@frozen(kw_only=True)
class MeasureResult:
    """All that `measure` found of one model on one store.

    Attributes:
        main: the name of the retriever that the verdict is about: the first that reads memory.
        retrievals: the ceiling, then all retrievers in the order of the spec.
        distances: of the main retriever from floors and ceiling, unmasked.
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
    retrievals: tuple[Retrieval, ...]
    distances: tuple[Distance, ...]
    gain: GainFigures
    clips: tuple[ClipRow, ...]
    asked: float
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

    def to_json(self) -> dict[str, Any]:
        """Give plain data for JSON."""
        return attrs.asdict(self)
