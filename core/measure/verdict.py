"""What the figures say, as plain sentences; a miss is called a miss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from attrs import frozen

from .figures import Interval
from .result import Distance, GainFigures, MeasureResult, MetricInfo

ASKED: Mapping[str, float] = {"mean-frame": 1.0}  # dB above; other floors ask for 0
FEW = 8  # clips below which an interval is called a guess

REACHED, MISSED, OPEN, NOTE = "reached", "missed", "unclear", "note"


@frozen(kw_only=True)
class Verdict:
    """A sentence and what it means: reached, missed, unclear (the interval holds both), or note."""

    state: str
    text: str

    def __str__(self) -> str:
        return f"[{self.state}] {self.text}"


def verdict(result: MeasureResult) -> tuple[Verdict, ...]:
    """Give the sentences: quality against floors and ceiling, gain of the memory, cautions."""
    return (
        *_distances(result),
        *_masking(result),
        *_gain(result.gain),
        *_cautions(result),
    )


def as_data(result: MeasureResult) -> dict[str, Any]:
    """Give result and verdict as plain data for JSON."""
    return {**result.to_json(), "verdict": [attrs.asdict(line) for line in verdict(result)]}


def number(value: float, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Give a figure as text with its unit: 2 digits behind the point for dB, 3 where
    the metric has no unit, 4 for losses.
    """
    unit = f" {metric.unit}" if metric and metric.unit else ""
    return _digits(value, metric, sign) + unit


def spread(found: Interval, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Give the interval of a figure as text, with its n."""
    clips = f"{found.n} clip{'s' if found.n > 1 else ''}"
    ends = span(found, metric, sign=sign)
    return f"[{ends}] ({clips})" if ends else f"(no interval, {clips})"


def span(found: Interval, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Give the two ends of an interval as text, or nothing where it has none."""
    if found.low is None or found.high is None:
        return ""
    return f"{_digits(found.low, metric, sign)}, {_digits(found.high, metric, sign)}"


def _digits(value: float, metric: MetricInfo | None, sign: bool) -> str:
    digits = 4 if metric is None else 2 if metric.unit else 3
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _distances(result: MeasureResult) -> Iterator[Verdict]:
    metric = result.metrics[0]
    own = result.retrieval(result.main).unmasked.figures[metric.name]
    yield Verdict(
        state=NOTE,
        text=f"{result.main} gives {number(own.mean, metric)} {metric.title} from the memory of "
        f"the clean history {spread(own, metric)}.",
    )
    for distance in result.distances:
        yield _floor(result.main, distance, metric)


def _floor(main: str, distance: Distance, metric: MetricInfo) -> Verdict:
    found = distance.figures[metric.name]
    side = "above" if found.mean >= 0 else "below"
    head = f"{main} is {number(abs(found.mean), metric)} {metric.title} {side} {distance.name}"
    if distance.kind == "ceiling":
        text = f"{head}, the codec's own reconstruction {spread(found, metric, sign=True)}."
        return Verdict(state=NOTE, text=text)
    if distance.kind != "floor":
        return Verdict(state=NOTE, text=f"{head} {spread(found, metric, sign=True)}.")
    asked = ASKED.get(distance.name, 0.0) if metric.unit == "dB" else 0.0
    state = _state(found, asked)
    wanted = f"at least {number(asked, metric)} above" if asked else "not below it"
    but = f"; {_doubt(found)}" if state == OPEN else ""
    text = f"{head} {spread(found, metric, sign=True)}; asked: {wanted}{but}."
    return Verdict(state=state, text=text)


def _doubt(found: Interval) -> str:
    return "its interval reaches below that" if found.low is not None else "one clip shows little"


def _state(found: Interval, asked: float) -> str:
    """Say whether a mean reaches what is asked; unclear where it does but its interval does not."""
    if found.mean < asked:
        return MISSED
    return REACHED if found.low is not None and found.low >= asked else OPEN


def _masking(result: MeasureResult) -> Iterator[Verdict]:
    metric, main = result.metrics[0], result.retrieval(result.main)
    if main.masked is None:
        return
    masked = main.masked.figures[metric.name]
    gap = masked.mean - main.unmasked.figures[metric.name].mean
    yield Verdict(
        state=NOTE,
        text=f"With all frames but those asked for masked, {result.main} gives "
        f"{number(masked.mean, metric)} {metric.title} {spread(masked, metric)}, "
        f"{number(gap, metric, sign=True)} against unmasked: there the encoder sees what will be "
        "asked for.",
    )


def _gain(gain: GainFigures) -> Iterator[Verdict]:
    found = gain.gain
    state = REACHED if found.low is not None and found.low > 0 else OPEN
    state = MISSED if found.mean <= 0 else state
    meaning = {
        REACHED: "the memory helps",
        MISSED: "the memory does not help",
        OPEN: f"asked: above 0; {_doubt(found)}",
    }[state]
    head = f"memory_gain (loss without memory − with) is {number(found.mean, sign=True)}"
    yield Verdict(state=state, text=f"{head} {spread(found, sign=True)}: {meaning}.")
    if gain.foreign is None:
        text = "No clip has another one of its size: there is no figure with shuffled memory."
        yield Verdict(state=OPEN, text=text)
        return
    yield _foreign(gain.foreign)


def _foreign(found: Interval) -> Verdict:
    """Judge shuffled memory: it must be worse than none, or equal within its interval."""
    helps = found.mean < 0 and (found.high is None or found.high < 0)
    state = MISSED if helps else REACHED
    meaning = (
        "another clip's memory helps, too, so part of the gain is not memory"
        if helps
        else "another clip's memory is no better than none"
    )
    head = f"Loss with another clip's memory − without any is {number(found.mean, sign=True)}"
    return Verdict(state=state, text=f"{head} {spread(found, sign=True)}: {meaning}.")


def _cautions(result: MeasureResult) -> Iterator[Verdict]:
    short, cut = (sum(getattr(c, k) for c in result.clips) for k in ("short", "cut"))
    if len(result.clips) < FEW:
        text = f"Only {len(result.clips)} clips were measured: their intervals are a guess."
        yield Verdict(state=NOTE, text=text)
    if short:
        lengths = [c.seconds for c in result.clips if c.short]
        text = f"{short} of {len(result.clips)} clips are shorter than {result.asked:g} s and were "
        text += f"used whole ({min(lengths):.1f} to {max(lengths):.1f} s)."
        yield Verdict(state=NOTE, text=text)
    if cut:
        text = f"{cut} of {len(result.clips)} clips are longer; their first {result.asked:g} s "
        yield Verdict(state=NOTE, text=text + "were measured.")
    if result.gain.alone and result.gain.foreign is not None:
        text = f"{result.gain.alone} clips have no other of their size, so no shuffled figure."
        yield Verdict(state=NOTE, text=text)
