"""Bars that a memory is held to: the paper's figures, and detail as fine as the original's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .figures import Interval
from .result import MeasureResult, MetricInfo, Retrieval
from .words import NOTE, OPEN, Verdict, doubt, number, spread, state_of

# PSNR of retrieval in dB by rate, arXiv 2512.23851, Table 1: a large backbone on its own data.
PAPER: Mapping[str, float] = {"4x4x2": 17.41, "2x2x2": 19.12, "2x2x4": 18.63, "2x2x1": 20.19}
WITHIN = 0.2  # of the original's energy in the high band


def bars(result: MeasureResult) -> Iterator[Verdict]:
    """Give a line for each learned retriever and bar; only samples are judged, the rest noted."""
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
