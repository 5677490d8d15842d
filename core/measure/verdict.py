"""What the figures say, as plain sentences; a miss is called a miss.

What is asked of a memory is the experiment's (`measure.targets`): a floor asks it to be no worse
than itself, or better by a target's `low`. Only retrievers that sample are held to ranges, since a
mean blurs; of means the same lines are notes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from attrs import frozen

from ..experiment import Target
from ..tools.words import counted
from .compare import RateTable, compare_rates
from .linear import NAME as LINEAR
from .result import (
    Distance,
    GainFigures,
    Interval,
    LongRow,
    MeasureResult,
    MetricInfo,
    RetrieverResult,
    interval,
)

REACHED, MISSED, OPEN, NOTE = "reached", "missed", "unclear", "note"
FEW = 8  # clips below which an interval is called a guess
SEVERAL = 5  # cells a number below which a linear code is called fitted on too little


@frozen(kw_only=True)
class VerdictLine:
    """A sentence and what it means: reached, missed, unclear (the interval holds both), or note."""

    state: str
    text: str

    def __str__(self) -> str:
        return f"[{self.state}] {self.text}"


def verdict(result: MeasureResult) -> tuple[VerdictLine, ...]:
    """Return the sentences: first what was asked and reached or not, then notes."""
    lines = (
        *_distances(result),
        *_way(result),
        *_targets(result),
        *_masking(result),
        *_gain(result.gain),
        *_continuations(result),
        *_swapped(result),
        *_long(result),
        *_cautions(result),
    )
    return tuple(sorted(lines, key=lambda line: line.state == NOTE))


def as_data(result: MeasureResult, rates: RateTable | None = None) -> dict[str, Any]:
    """Return result, verdict and figures by rate as plain data for JSON."""
    return {
        **result.to_json(),
        "way_to_linear": attrs.asdict(way) if (way := way_to_linear(result)) else None,
        "by_rate": attrs.asdict(rates or compare_rates(result)),
        "verdict": [attrs.asdict(line) for line in verdict(result)],
    }


def format_number(value: float, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Return a figure as text without its unit.

    It has 2 digits behind the point where the metric has a unit, 3 where it has none, 4 for losses
    (`metric` None).
    """
    digits = 4 if metric is None else 2 if metric.unit else 3
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def format_figure(value: float, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Return a figure as text with its unit."""
    unit = f" {metric.unit}" if metric and metric.unit else ""
    return format_number(value, metric, sign=sign) + unit


def format_ends(figure: Interval, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Return the two ends of an interval as text, or nothing where it has none."""
    if figure.low is None or figure.high is None:
        return ""
    return ", ".join(format_number(end, metric, sign=sign) for end in (figure.low, figure.high))


def format_interval(
    figure: Interval, metric: MetricInfo | None = None, *, sign: bool = False
) -> str:
    """Return the interval of a figure as text, with its number of clips."""
    clips = counted(figure.n, "clip")
    ends = format_ends(figure, metric, sign=sign)
    return f"[{ends}] ({clips})" if ends else f"(no interval, {clips})"


def _state(figure: Interval, low: float, high: float = float("inf")) -> str:
    """Return whether a mean lies in [low, high]; unclear: it does, but its interval does not."""
    if not low <= figure.mean <= high:
        return MISSED
    if figure.low is None or figure.high is None:
        return OPEN
    return REACHED if low <= figure.low and figure.high <= high else OPEN


def _doubt(figure: Interval, low: float) -> str:
    """Say why a figure is unclear that should be `low` or more."""
    if figure.low is None:
        return "one clip shows little"
    return f"its interval reaches {'below' if figure.low < low else 'above'} that"


def _judged(
    text: str, figure: Interval, asked: str, low: float, high: float = float("inf")
) -> VerdictLine:
    """Return a line that says what was asked of its figure, and why it is unclear where it is."""
    state = _state(figure, low, high)
    doubt = f"; {_doubt(figure, low)}" if state == OPEN else ""
    return VerdictLine(state=state, text=f"{text}; asked: {asked}{doubt}.")


def _note(text: str) -> VerdictLine:
    return VerdictLine(state=NOTE, text=text)


def _distances(result: MeasureResult) -> Iterator[VerdictLine]:
    metric = result.metrics[0]
    own = result.retrieval(result.main).unmasked.figures[metric.name]
    yield _note(
        f"{result.main} gives {format_figure(own.mean, metric)} {metric.title} from the memory of "
        f"the clean history {format_interval(own, metric)}."
    )
    for distance in result.distances:
        yield _distance(result, distance, metric)


def _distance(result: MeasureResult, distance: Distance, metric: MetricInfo) -> VerdictLine:
    figure = distance.figures[metric.name]
    head = (
        f"{result.main} is {format_figure(abs(figure.mean), metric)} {metric.title} "
        f"{_side(figure.mean, metric)} {distance.name}"
    )
    spread = format_interval(figure, metric, sign=True)
    if distance.kind == "ceiling":
        return _note(f"{head}, the codec's own reconstruction {spread}.")
    if distance.kind != "floor":
        return _note(f"{head} {spread}.")
    low = _least_distance(result, distance.name, metric)
    asked = f"at least {format_figure(low, metric)} above" if low else "not below it"
    return _judged(f"{head} {spread}", figure, asked, low)


def _least_distance(result: MeasureResult, floor: str, metric: MetricInfo) -> float:
    """Return by how much the main retriever is asked to be better than a floor."""
    targets = [t for t in _own_targets(result) if (t.over, t.metric) == (floor, metric.plugin)]
    return targets[0].low if targets else 0.0


@frozen(kw_only=True)
class Way:
    """How far the main retriever is from a floor to the best linear code of as many numbers.

    Attributes:
        start: the floor's name.
        share: 0 at the floor, 1 at the code, of the first metric, paired by clip.
        gap: from the floor to the code, mean over clips.
    """

    start: str
    share: Interval
    gap: float


def way_to_linear(result: MeasureResult) -> Way | None:
    """Return how far the way is that the first floor leaves; None where either was not measured.

    None, too, where the code is no better than the floor: then there is no way to go.
    """
    floors = [one.name for one in result.retrievals if one.kind == "floor"]
    if not floors or not any(one.name == LINEAR for one in result.retrievals):
        return None
    metric, start = result.metrics[0], floors[0]

    def merits(name: str) -> list[float]:
        return [metric.merit(clip.unmasked[name][metric.name]) for clip in result.clips]

    own, floor, code = merits(result.main), merits(start), merits(LINEAR)
    gap = sum(code) / len(code) - sum(floor) / len(floor)
    if gap <= 0:
        return None
    share = interval([(one - low) / gap for one, low in zip(own, floor, strict=True)])
    return Way(start=start, share=share, gap=gap)


def _way(result: MeasureResult) -> Iterator[VerdictLine]:
    """Say how much of what its size could hold the memory gives beyond the floor."""
    if not any(one.name == LINEAR for one in result.retrievals):
        return
    way, metric = way_to_linear(result), result.metrics[0]
    if way is None:
        text = f"The best linear code of as many numbers ({LINEAR}) is no better than the floor."
        yield _note(text)
        yield from _code(result)
        return
    low, high = way.share.low, way.share.high
    ends = "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    own = f"{100 * way.share.mean:.0f} %{ends}".replace("-", "−")
    yield _note(
        f"{result.main} goes {own} of the way of "
        f"{format_figure(way.gap, metric)} {metric.title} from {way.start} to {LINEAR}, the best "
        "linear code of as many numbers."
    )
    yield from _code(result)


def _code(result: MeasureResult) -> Iterator[VerdictLine]:
    """Say where the code was fitted on too little, or on what is measured."""
    code = result.code
    if code is None:
        return
    if code.cells < SEVERAL * code.numbers:
        yield _note(
            f"{LINEAR} was fitted on {code.cells:,} cells of {code.store}, for {code.numbers:,} "
            f"numbers a cell: too few to be the best code of other clips. Fit it on {SEVERAL} "
            "cells a number or more (--fit STORE)."
        )
    if code.seen:
        yield _note(
            f"{LINEAR} was fitted on {code.store}, which has {code.seen} of the "
            f"{counted(len(result.clips), 'clip')} measured: it knows these, and is too good "
            "for clips that it has not seen. Fit it on the training store (--fit STORE)."
        )


def _side(value: float, metric: MetricInfo) -> str:
    if metric.goal == "higher":
        return "above" if value >= 0 else "below"
    return "better than" if value >= 0 else "worse than"


def _own_targets(result: MeasureResult) -> list[Target]:
    """Return the targets that are asked of memories of the result's rates."""
    return [target for target in result.targets if target.holds_for(result.rates)]


def _targets(result: MeasureResult) -> Iterator[VerdictLine]:
    """Yield a line for each range that is asked and each learned retriever."""
    targets = [target for target in _own_targets(result) if target.over is None]
    learned = [one for one in result.retrievals if one.kind == "learned"]
    for target in targets:
        metric = result.metric(target.metric)
        for retriever in learned if metric else ():
            assert metric is not None
            yield _in_range(result, retriever, target, metric)
    if targets and not any(one.samples for one in learned):
        text = "No retriever of the experiment gives samples, which alone are held to its targets."
        yield _note(text)


def _in_range(
    result: MeasureResult, retriever: RetrieverResult, target: Target, metric: MetricInfo
) -> VerdictLine:
    """Judge a figure beside the source of its range, or beside the codec's where it has none."""
    figure = retriever.unmasked.figures[metric.name]
    text = (
        f"{retriever.name} {metric.verb} {format_figure(figure.mean, metric)} {metric.quantity} "
        f"{format_interval(figure, metric)}"
    )
    if target.source:
        gap = figure.mean - target.low
        side = "above" if gap >= 0 else "below"
        low = f"{target.low:.2f} {metric.unit}".rstrip()
        text += f", {format_figure(abs(gap), metric)} {side} the {low} of {target.source}"
    else:
        best = result.retrievals[0].unmasked.figures[metric.name]
        own = format_figure(best.mean, metric)
        text += f"; the codec's own reconstruction {metric.verb} {own}"
    if not retriever.samples:
        return _note(f"{text}.")
    if target.high is None:
        return _judged(text, figure, f"{target.low:.2f} or more", target.low)
    asked = f"{target.low:.2f} to {target.high:.2f}"
    return _judged(text, figure, asked, target.low, target.high)


def _masking(result: MeasureResult) -> Iterator[VerdictLine]:
    metric, main = result.metrics[0], result.retrieval(result.main)
    if main.masked is None:
        return
    masked = main.masked.figures[metric.name]
    gap = masked.mean - main.unmasked.figures[metric.name].mean
    yield _note(
        f"With all frames but those asked for masked, {result.main} gives "
        f"{format_figure(masked.mean, metric)} {metric.title} {format_interval(masked, metric)}, "
        f"{format_figure(gap, metric, sign=True)} against unmasked: there the encoder sees what "
        "will be asked for."
    )


def continuation_table(result: MeasureResult) -> list[str]:
    """Return the losses of what follows a past, a line for each memory; of a Stage II run."""
    figures = result.continuations
    if figures is None:
        return []
    rows: list[tuple[str, Interval | None, bool]] = [
        ("memory of the past", figures.true, False),
        ("no memory", figures.none, False),
        ("another clip's memory", figures.shuffled, False),
        ("none − memory", figures.gain, True),
        ("another's − memory", figures.specific, True),
        ("another's − none", figures.foreign, True),
    ]
    return ["loss of the future with", *(_row(*row) for row in rows)]


def _row(name: str, figure: Interval | None, sign: bool) -> str:
    if figure is None:
        return f"  {name:<22} –"
    mean = format_figure(figure.mean, sign=sign)
    return f"  {name:<22} {mean:>8} {format_interval(figure, sign=sign)}"


def _continuations(result: MeasureResult) -> Iterator[VerdictLine]:
    """Judge Stage II: the memory of the past must help to go on, another clip's must not."""
    figures = result.continuations
    if figures is None:
        return
    yield from _gain(figures, "memory_gain of the future")


def _gain(gain: GainFigures, name: str = "memory_gain") -> Iterator[VerdictLine]:
    figure = gain.gain
    state = REACHED if figure.low is not None and figure.low > 0 else OPEN
    state = MISSED if figure.mean <= 0 else state
    meaning = {
        REACHED: "the memory helps",
        MISSED: "the memory does not help",
        OPEN: f"asked: above 0; {_doubt(figure, 0.0)}",
    }[state]
    head = f"{name} (loss without memory − with) is {format_figure(figure.mean, sign=True)}"
    spread = format_interval(figure, sign=True)
    yield VerdictLine(state=state, text=f"{head} {spread}: {meaning}.")
    if gain.foreign is None:
        text = "No clip has another one of its size: there is no figure with shuffled memory."
        yield VerdictLine(state=OPEN, text=text)
        return
    yield _foreign(gain.foreign, "" if name == "memory_gain" else " of the future")


def _foreign(figure: Interval, of: str = "") -> VerdictLine:
    """Judge shuffled memory: it must be worse than none, or equal within its interval."""
    helps = figure.mean < 0 and (figure.high is None or figure.high < 0)
    state = MISSED if helps else REACHED
    meaning = (
        "another clip's memory helps, too, so part of the gain is not memory"
        if helps
        else "another clip's memory is no better than none"
    )
    mean, spread = format_figure(figure.mean, sign=True), format_interval(figure, sign=True)
    head = f"Loss{of} with another clip's memory − without any is {mean}"
    return VerdictLine(state=state, text=f"{head} {spread}: {meaning}.")


def _swapped(result: MeasureResult) -> Iterator[VerdictLine]:
    """Say what another clip's memory does to retrieval: it must be worse than the clip's own."""
    metric, main = result.metrics[0], result.main
    gaps = [
        metric.merit(clip.unmasked[main][metric.name]) - metric.merit(clip.swapped[metric.name])
        for clip in result.clips
        if clip.swapped
    ]
    if not gaps:
        return
    figure = interval(gaps)
    text = (
        f"From another clip's memory {main} is {format_figure(abs(figure.mean), metric)} "
        f"{metric.title} {_side(-figure.mean, metric)} the clip's own "
        f"{format_interval(figure, metric)}"
    )
    yield _judged(text, figure, "not as good", 0.0)


def _long(result: MeasureResult) -> Iterator[VerdictLine]:
    if result.long_asked <= result.asked:
        return
    if not result.long:
        yield _note(
            f"No clip lasts {result.long_asked:g} s, so nothing was measured at that length."
        )
        return
    metric = result.metrics[0]
    floor = next((one.name for one in result.retrievals if one.kind == "floor"), None)
    for one in result.retrievals:
        if one.kind == "learned":
            rows = "; ".join(_long_clip(row, one.name, floor, metric) for row in result.long)
            length = f"{result.long_asked:g} s"
            yield _note(f"{one.name} at {length}, clip by clip, {metric.title}: {rows}.")


def _long_clip(row: LongRow, name: str, floor: str | None, metric: MetricInfo) -> str:
    own = format_figure(row.unmasked[name][metric.name], metric)
    if floor is None:
        return f"{row.name} {own}"
    return f"{row.name} {own} ({floor} {format_figure(row.unmasked[floor][metric.name], metric)})"


def _cautions(result: MeasureResult) -> Iterator[VerdictLine]:
    count = len(result.clips)
    if result.unfinished:
        yield _note(f"This is not all: {result.unfinished}.")
    for metric in result.missing:
        yield _note(f"{metric.title} was not measured: {metric.reason}.")
    if count < FEW:
        yield _note(f"Only {counted(count, 'clip')} measured: the intervals are a guess.")
    lengths = [clip.seconds for clip in result.clips if clip.short]
    if lengths:
        yield _note(
            f"{len(lengths)} of {count} clips are shorter than {result.asked:g} s and were used "
            f"whole ({min(lengths):.1f} to {max(lengths):.1f} s)."
        )
    cut = sum(clip.cut for clip in result.clips)
    if cut:
        text = f"{cut} of {count} clips are longer; their first {result.asked:g} s were measured."
        yield _note(text)
    if result.gain.alone and result.gain.foreign is not None:
        text = f"{result.gain.alone} clips have no other of their size, so no shuffled figure."
        yield _note(text)
