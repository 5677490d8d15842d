"""What `measure` gives, as plain values: written as JSON, shown in the report.

From the bottom up: the scores of single frames (`FrameScores`), their means over clips with an
interval (`Interval`, `Quality`), one retriever over all clips (`RetrieverResult`), one clip
(`ClipRow`), and all of it (`MeasureResult`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from ..experiment import Target
from ..interfaces.metric import Goal, merit

FORMAT = 2
RESAMPLES = 2000  # of the bootstrap
SHARE = 0.95  # that an interval covers
SEED = 2512  # of the resamples


@frozen(eq=False, kw_only=True)
class FrameScores:
    """Scores of video frames of one clip.

    Attributes:
        frames: which frames, counted in the window, int64 `[F]`; some may stand twice.
        total: frames of the window.
        values: by metric, `[F]`.
        weights: how much each frame counts by metric, `[F]`; metrics that are left out: alike.
    """

    frames: Tensor
    total: int
    values: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] = field(factory=dict)

    def only(self, metrics: Collection[str]) -> FrameScores:
        """Return the scores by these metrics alone."""
        return attrs.evolve(
            self,
            values={name: x for name, x in self.values.items() if name in metrics},
            weights={name: x for name, x in self.weights.items() if name in metrics},
        )

    def means(self, chosen: Tensor | None = None) -> dict[str, float]:
        """Return weighted means by metric, over all frames or over those `chosen`, bool `[F]`."""
        frames = torch.ones_like(self.frames, dtype=torch.bool) if chosen is None else chosen
        return {name: self._mean(name, frames) for name in self.values}

    def _mean(self, name: str, chosen: Tensor) -> float:
        value = self.values[name][chosen].double()
        weight = self.weights.get(name, torch.ones(len(chosen)))[chosen].double()
        return float((value * weight).sum() / weight.sum())

    def means_by_age(self, fps: float, width: float) -> dict[int, dict[str, float]]:
        """Return the means of each age bin by its number: bin k is [k, k + 1)·`width` seconds old.

        The newest frame of the window is 0 seconds old.
        """
        ages = (self.total - 1 - self.frames) / fps
        bins = (ages / width + 1e-9).floor().long()
        return {number: self.means(bins == number) for number in bins.unique().tolist()}

    def like(self, other: FrameScores) -> FrameScores:
        """Return the scores of the frames that `other` holds, as often as it holds them.

        Raises:
            KeyError: a frame of `other` is not here.
        """
        place = {frame: k for k, frame in enumerate(self.frames.tolist())}
        index = torch.tensor([place[frame] for frame in other.frames.tolist()])
        return FrameScores(
            frames=other.frames,
            total=self.total,
            values={name: value[index] for name, value in self.values.items()},
            weights={name: weight[index] for name, weight in self.weights.items()},
        )


def join_scores(parts: Sequence[FrameScores]) -> FrameScores:
    """Return the scores of several queries of one clip as one, by the metrics that all have."""
    first = parts[0].only(set.intersection(*(set(part.values) for part in parts)))
    return FrameScores(
        frames=torch.cat([part.frames for part in parts]),
        total=first.total,
        values={m: torch.cat([part.values[m] for part in parts]) for m in first.values},
        weights={m: torch.cat([part.weights[m] for part in parts]) for m in first.weights},
    )


@frozen(kw_only=True)
class Interval:
    """A mean over clips and its 95 % interval, which one clip alone does not have.

    Attributes:
        mean: over clips, each counted once.
        low, high: ends of the interval; None where n is 1.
        n: clips.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of one value a clip with its 95 % interval, by bootstrap over clips.

    Percentiles of the means of 2000 resamples, drawn from a fixed seed: the same values always
    give the same interval. With few clips such an interval is rather too narrow.

    Raises:
        ValueError: there is no value.
    """
    return interval_over_runs([values])


def interval_or_none(values: Sequence[float | None]) -> Interval | None:
    """Return the interval of the values that exist, or None where none does."""
    existing = [value for value in values if value is not None]
    return interval(existing) if existing else None


def interval_over_runs(values: Sequence[Sequence[float]]) -> Interval:
    """Return the mean over runs and clips with its 95 % interval: both are resampled.

    With one run this is `interval` of its clips. With few runs such an interval is too narrow.

    Args:
        values: of each run one value a clip, the same clips in the same order.

    Raises:
        ValueError: there is no value.
    """
    if not values or not values[0]:
        raise ValueError("no value, no mean")
    table = torch.tensor([list(run) for run in values], dtype=torch.float64)  # [runs, clips]
    mean, (runs, n) = float(table.mean()), table.shape
    if n == 1:
        return Interval(mean=mean, low=None, high=None, n=1)
    generator = torch.Generator().manual_seed(SEED)
    clips = torch.randint(n, (RESAMPLES, 1, n), generator=generator)
    chosen = torch.randint(runs, (RESAMPLES, runs, 1), generator=generator)
    means = table[chosen, clips].mean(dim=(1, 2))
    ends = torch.tensor([(1 - SHARE) / 2, (1 + SHARE) / 2], dtype=torch.float64)
    low, high = means.quantile(ends).tolist()
    return Interval(mean=mean, low=min(low, mean), high=max(high, mean), n=n)


@frozen(kw_only=True)
class MetricInfo:
    """A metric as reports need it.

    Attributes:
        name: unique in the result; `plugin` the name it is found by; `title` as printed.
        unit: printed behind figures, "" for none.
        goal: "higher" or "lower" is better, or the number that equal frames have.
        verb, quantity: make a sentence of a figure: "RETRIEVER verb FIGURE quantity".
        needs: what is missing here to measure it; "": nothing.
        failed: how it failed while it measured; "": it did not.
    """

    name: str
    plugin: str
    title: str
    unit: str
    goal: Goal
    verb: str
    quantity: str
    needs: str = ""
    failed: str = ""

    @property
    def reason(self) -> str:
        """Why it was not measured, as the end of a sentence; "": it was."""
        return f"it needs {self.needs}" if self.needs else self.failed and f"it {self.failed}"

    def merit(self, value: float) -> float:
        """Return a figure so that more is better."""
        return merit(self.goal, value)

    @property
    def wish(self) -> str:
        """What is good, in words."""
        return f"{self.goal} is better" if isinstance(self.goal, str) else f"best at {self.goal:g}"


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


def quality_over_clips(clips: Sequence[FrameScores], *, fps: float, width: float) -> Quality:
    """Return the quality over clips, each counted once, and by age bins of `width` seconds."""
    bins: dict[int, list[dict[str, float]]] = defaultdict(list)
    for clip in clips:
        for number, means in clip.means_by_age(fps, width).items():
            bins[number].append(means)
    ages = tuple(
        AgeBin(start=number * width, end=(number + 1) * width, figures=_intervals(bins[number]))
        for number in sorted(bins)
    )
    return Quality(figures=_intervals([clip.means() for clip in clips]), ages=ages)


def _intervals(rows: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    return {name: interval([row[name] for row in rows]) for name in rows[0]}


def age_width(seconds: float) -> float:
    """Return the width of age bins: whole seconds, so that there are ten at most."""
    return float(max(1, math.ceil(seconds / 10)))


@frozen(kw_only=True)
class RetrieverResult:
    """One retriever over all clips.

    Attributes:
        name: unique among the retrievers of the result.
        kind: learned, part (learned, of one part of the memory alone), floor, guide (no bar: it
            had no codec to pass, or says what could be reached) or ceiling.
        unmasked: from the memory of the clean history, every frame asked for.
        masked: from the memory of masked histories, Ω asked for; learned ones only.
        numbers: how many numbers a clip is kept as (median over clips), where it is known.
        seconds: median over clips of the time that one latent frame takes, not decoded.
        samples: what it gives is a sample, of which detail is asked, and no mean.
    """

    name: str
    kind: str
    unmasked: Quality
    masked: Quality | None = None
    numbers: int | None = None
    seconds: float | None = None
    samples: bool = False


@frozen(kw_only=True)
class Distance:
    """How much better the main retriever is than another, clip by clip; below 0 it is worse.

    Where the goal of a metric is a number, it is how much nearer to it.
    """

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
class ContinuationRow:
    """How one clip goes on: seconds of past and target, and the losses of the target.

    Attributes:
        true, none, shuffled: with the memory of the past, without any, with another clip's (None:
            no other is cut alike).
    """

    past: float
    target: float
    true: float
    none: float
    shuffled: float | None


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
        continuation: of Stage II, None where the clip was not cut.
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
    continuation: ContinuationRow | None = None


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
class CodeInfo:
    """What the linear code of the guide `linear` was fitted on.

    Attributes:
        store: the name of the store's folder.
        cells: of its latents; `numbers` those that are kept of each.
        seen: how many of the clips that were measured show a file that its clips show, too; None:
            it was fitted before this was written down.
    """

    store: str
    cells: int
    numbers: int
    seen: int | None


@frozen(kw_only=True)
class MeasureResult:
    """All that was measured of one model on one store.

    Attributes:
        main: the name of the retriever that the verdict is about: the first that reads memory.
        retrievals: the ceiling, then all retrievers in the order of the spec.
        distances: of the main retriever from floors, ceiling and other retrievers, unmasked.
        missing: metrics of the experiment that could not be measured here, and why.
        rates: compression rates that the compressors name, as `4x4x2`.
        targets: what the experiment holds its figures to; in JSON they stand in `spec`.
        long: clips that have `long_asked` seconds, measured at that length, too.
        spec: the experiment, resolved.
        asked: seconds of history asked for; `queries` masked queries for each clip.
        mirrored: variants of clips (mirrored, backwards, faster), which are never measured.
        continuations: of a Stage II run, losses of the video that follows a past.
        code: what the guide `linear` was fitted on; None where it was not measured.
        took: seconds that measuring took.
        unfinished: why there are not all clips, and how many there are; "": there are all.
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
    targets: tuple[Target, ...]
    retrievals: tuple[RetrieverResult, ...]
    distances: tuple[Distance, ...]
    gain: GainFigures
    continuations: GainFigures | None = None
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
    unfinished: str = ""
    code: CodeInfo | None = None

    def retrieval(self, name: str) -> RetrieverResult:
        """Return the result of the retriever of that name."""
        return next(one for one in self.retrievals if one.name == name)

    def metric(self, plugin: str) -> MetricInfo | None:
        """Return the first measured metric of a plugin, or None."""
        return next((metric for metric in self.metrics if metric.plugin == plugin), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON; figures of metrics that were not measured are null."""
        data = attrs.asdict(self)
        del data["targets"]
        _add_nulls(data, [metric.name for metric in self.missing])
        return {"format": FORMAT, **data}


def _add_nulls(data: dict[str, Any], metrics: Sequence[str]) -> None:
    """Add null figures of these metrics wherever figures stand."""
    ways = ("unmasked", "masked")
    qualities = [one[way] for one in data["retrievals"] for way in ways if one[way]]
    rows = [row for quality in qualities for row in (quality, *quality["ages"])]
    figures = [row["figures"] for row in (*rows, *data["distances"])]
    clips = [*data["clips"], *data["long"]]
    figures += [by for clip in clips for way in ways if way in clip for by in clip[way].values()]
    for by_metric in figures:
        by_metric.update(dict.fromkeys(metrics))
