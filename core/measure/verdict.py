"""What the figures say, as plain sentences; a miss is called a miss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from attrs import frozen

from ..interfaces.metric import merit
from .compare import ByRate, by_rate
from .result import (
    Distance,
    GainFigures,
    Interval,
    LongRow,
    MeasureResult,
    MetricInfo,
    Retrieval,
    interval,
)

# ⟦core/measure/words.py⟧ Figures as words: numbers with units, intervals, and what they mean.


REACHED, MISSED, OPEN, NOTE = "reached", "missed", "unclear", "note"


@frozen(kw_only=True)
class Verdict:
    """A sentence and what it means: reached, missed, unclear (the interval holds both), or note."""

    state: str
    text: str

    def __str__(self) -> str:
        return f"[{self.state}] {self.text}"


def state_of(found: Interval, low: float, high: float = float("inf")) -> str:
    """Say whether a mean lies in [low, high]; unclear where it does but its interval does not."""
    if not low <= found.mean <= high:
        return MISSED
    if found.low is None or found.high is None:
        return OPEN
    return REACHED if low <= found.low and found.high <= high else OPEN


def doubt(found: Interval, low: float) -> str:
    """Say why a figure is unclear that should be `low` or more."""
    if found.low is None:
        return "one clip shows little"
    return f"its interval reaches {'below' if found.low < low else 'above'} that"


def number(value: float, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Return a figure as text with its unit: 2 digits behind the point for dB, 3 where
    the metric has no unit, 4 for losses.
    """
    unit = f" {metric.unit}" if metric and metric.unit else ""
    return _digits(value, metric, sign) + unit


def bare(value: float, metric: MetricInfo) -> str:
    """Return a figure as text without its unit."""
    return _digits(value, metric, sign=False)


def spread(found: Interval, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Return the interval of a figure as text, with its n."""
    clips = f"{found.n} clip{'s' if found.n > 1 else ''}"
    ends = span(found, metric, sign=sign)
    return f"[{ends}] ({clips})" if ends else f"(no interval, {clips})"


def span(found: Interval, metric: MetricInfo | None = None, *, sign: bool = False) -> str:
    """Return the two ends of an interval as text, or nothing where it has none."""
    if found.low is None or found.high is None:
        return ""
    return f"{_digits(found.low, metric, sign)}, {_digits(found.high, metric, sign)}"


def _digits(value: float, metric: MetricInfo | None, sign: bool) -> str:
    digits = 4 if metric is None else 2 if metric.unit else 3
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


# ⟦core/measure/bars.py⟧ Bars that a memory is held to: the paper's figures, and detail as fine as the original's.


# PSNR of retrieval in dB by rate, arXiv 2512.23851, Table 1: a large backbone on its own data.
PAPER: Mapping[str, float] = {"4x4x2": 17.41, "2x2x2": 19.12, "2x2x4": 18.63, "2x2x1": 20.19}
WITHIN = 0.2  # of the original's energy in the high band


def bars(result: MeasureResult) -> Iterator[Verdict]:
    """Yield a line for each learned retriever and bar; only samples are judged, the rest noted."""
    learned = [found for found in result.retrievals if found.kind == "learned"]
    paper = PAPER.get(result.rates[0]) if len(result.rates) == 1 else None
    psnr, band = result.metric("psnr"), result.metric("high-band")
    for found in learned:
        if psnr and paper:
            yield _beside_paper(found, psnr, paper, result.rates[0])
    for found in learned:
        if band:
            yield _detail(found, band, result.retrievals[0])
    if not any(found.samples for found in learned):
        text = "No retriever of the experiment gives samples (as flow does from 20 steps on), of "
        text += "which the paper's figure and detail would be asked."
        yield Verdict(state=NOTE, text=text)


def _beside_paper(found: Retrieval, metric: MetricInfo, paper: float, rate: str) -> Verdict:
    own = found.unmasked.figures[metric.name]
    gap = own.mean - paper
    text = (
        f"{found.name} gives {number(own.mean, metric)} {metric.title} {spread(own, metric)}, "
        f"{number(abs(gap), metric)} {'above' if gap >= 0 else 'below'} the {paper:.2f} dB of the "
        f"paper at {rate} (a large backbone on other data: a yardstick, no comparison)"
    )
    return _judged(found, own, text, paper)


def _detail(found: Retrieval, metric: MetricInfo, ceiling: Retrieval) -> Verdict:
    own, best = (one.unmasked.figures[metric.name] for one in (found, ceiling))
    text = (
        f"{found.name} holds {number(own.mean, metric)} of the original's energy in the "
        f"{metric.title} {spread(own, metric)}; the codec's own reconstruction holds "
        f"{number(best.mean, metric)}"
    )
    return _judged(found, own, text, 1 - WITHIN, 1 + WITHIN)


def _judged(
    found: Retrieval, own: Interval, text: str, low: float, high: float = float("inf")
) -> Verdict:
    """Judge a sample; of a mean the line is a note, since a mean blurs."""
    if not found.samples:
        return Verdict(state=NOTE, text=f"{text}.")
    state = state_of(own, low, high)
    wanted = f"{low:.2f} or more" if high == float("inf") else f"{low:.2f} to {high:.2f}"
    but = f"; {doubt(own, low)}" if state == OPEN else ""
    return Verdict(state=state, text=f"{text}; asked: {wanted}{but}.")


ASKED: Mapping[str, float] = {"mean-frame": 1.0}  # dB above; other floors ask for 0
FEW = 8  # clips below which an interval is called a guess


def verdict(result: MeasureResult) -> tuple[Verdict, ...]:
    """Return the sentences: first what was asked and reached or not, then notes."""
    lines = (
        *_distances(result),
        *bars(result),
        *_masking(result),
        *_gain(result.gain),
        *_swapped(result),
        *_long(result),
        *_cautions(result),
    )
    return tuple(sorted(lines, key=lambda line: line.state == NOTE))


def as_data(result: MeasureResult, rates: ByRate | None = None) -> dict[str, Any]:
    """Return result, verdict and figures by rate as plain data for JSON."""
    return {
        **result.to_json(),
        "by_rate": attrs.asdict(rates or by_rate(result)),
        "verdict": [attrs.asdict(line) for line in verdict(result)],
    }


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
    side = _side(found.mean, metric)
    head = f"{main} is {number(abs(found.mean), metric)} {metric.title} {side} {distance.name}"
    if distance.kind == "ceiling":
        text = f"{head}, the codec's own reconstruction {spread(found, metric, sign=True)}."
        return Verdict(state=NOTE, text=text)
    if distance.kind != "floor":
        return Verdict(state=NOTE, text=f"{head} {spread(found, metric, sign=True)}.")
    asked = ASKED.get(distance.name, 0.0) if metric.unit == "dB" else 0.0
    state = state_of(found, asked)
    wanted = f"at least {number(asked, metric)} above" if asked else "not below it"
    but = f"; {doubt(found, asked)}" if state == OPEN else ""
    text = f"{head} {spread(found, metric, sign=True)}; asked: {wanted}{but}."
    return Verdict(state=state, text=text)


def _side(value: float, metric: MetricInfo) -> str:
    if metric.goal == "higher":
        return "above" if value >= 0 else "below"
    return "better than" if value >= 0 else "worse than"


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
        OPEN: f"asked: above 0; {doubt(found, 0.0)}",
    }[state]
    head = f"memory_gain (loss without memory − with) is {number(found.mean, sign=True)}"
    yield Verdict(state=state, text=f"{head} {spread(found, sign=True)}: {meaning}.")
    if gain.foreign is None:
        text = "No clip has another one of its size: there is no figure with shuffled memory."
        yield Verdict(state=OPEN, text=text)
        return
    yield _foreign(gain.foreign)


def _swapped(result: MeasureResult) -> Iterator[Verdict]:
    """Say what another clip's memory does to retrieval: it must be worse than the clip's own."""
    metric, main = result.metrics[0], result.main
    pairs = [
        (clip.unmasked[main][metric.name], clip.swapped[metric.name])
        for clip in result.clips
        if clip.swapped
    ]
    if not pairs:
        return
    found = interval([merit(metric.goal, own) - merit(metric.goal, his) for own, his in pairs])
    text = (
        f"From another clip's memory {main} is {number(abs(found.mean), metric)} {metric.title} "
        f"{_side(-found.mean, metric)} the clip's own {spread(found, metric)}"
    )
    state = state_of(found, 0.0)
    but = f"; {doubt(found, 0.0)}" if state == OPEN else ""
    yield Verdict(state=state, text=f"{text}; asked: not as good{but}.")


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


def _long(result: MeasureResult) -> Iterator[Verdict]:
    if result.long_asked <= result.asked:
        return
    if not result.long:
        text = f"No clip lasts {result.long_asked:g} s, so nothing was measured at that length."
        yield Verdict(state=NOTE, text=text)
        return
    metric = result.metrics[0]
    floor = next((found.name for found in result.retrievals if found.kind == "floor"), None)
    for found in result.retrievals:
        if found.kind == "learned":
            rows = "; ".join(_long_clip(row, found.name, floor, metric) for row in result.long)
            text = f"{found.name} at {result.long_asked:g} s, clip by clip, {metric.title}: {rows}."
            yield Verdict(state=NOTE, text=text)


def _long_clip(row: LongRow, name: str, floor: str | None, metric: MetricInfo) -> str:
    own = number(row.unmasked[name][metric.name], metric)
    if floor is None:
        return f"{row.name} {own}"
    return f"{row.name} {own} ({floor} {number(row.unmasked[floor][metric.name], metric)})"


def _cautions(result: MeasureResult) -> Iterator[Verdict]:
    for metric in result.missing:
        yield Verdict(state=NOTE, text=f"{metric.title} was not measured: it needs {metric.needs}.")
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
