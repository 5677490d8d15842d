"""Cards, charts and tables of the report, as the template reads them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from attrs import frozen

from .beside import ByRate, by_rate
from .charts import age_chart, series_of
from .clip_tables import clip_columns, clip_view, long_rows
from .figures import Interval
from .rate_chart import has_lengths, marks_of, rate_chart
from .result import MeasureResult, MetricInfo, Quality, Retrieval
from .verdict import verdict
from .words import bare, number, span

READS = ("learned", "part")  # kinds that read memory
MEANING = {
    "ceiling": "the codec's own reconstruction",
    "learned": "from memory",
    "part": "from one part of the memory alone",
    "floor": "floor, reads the history itself",
    "guide": "guide, never passes the codec",
}


@frozen(kw_only=True)
class Cell:
    """A figure in a table: its mean and its interval as text, empty where there is none."""

    mean: str = ""
    span: str = ""
    n: int | None = None


def views(result: MeasureResult, rates: ByRate | None = None) -> dict[str, Any]:
    """Give all that the page shows of a result, figures as text."""
    masked = [found for found in result.retrievals if found.masked]
    rates = rates or by_rate(result)
    return {
        "verdict": verdict(result),
        "cards": _cards(result),
        "rows": [_row(result, found, found.unmasked) for found in result.retrievals],
        "masked_rows": [_row(result, found, found.masked) for found in masked],
        "series": series_of(result),
        "charts": [(metric, age_chart(result, metric)) for metric in result.metrics],
        "rates": _rates(result, rates) if has_lengths(rates) else None,
        "long_rows": long_rows(result),
        "contexts": _contexts(result),
        "gains": _gains(result),
        "clip_columns": clip_columns(result),
        "clips": [clip_view(result, index) for index in range(len(result.clips))],
        "spec": json.dumps(result.spec, indent=2, ensure_ascii=False),
    }


def _cards(result: MeasureResult) -> list[tuple[str, str, str]]:
    """Give the headline figures: label, figure, and what stands under it."""
    metric, gain = result.metrics[0], result.gain.gain
    samples = [found for found in result.retrievals if found.samples][:1]
    shown = [result.retrieval(result.main), *(s for s in samples if s.name != result.main)]
    cards = [_card(f"{metric.title}, {found.name}", found, metric) for found in shown]
    cards.append(_card("codec's ceiling", result.retrievals[0], metric))
    if band := result.metric("high-band"):
        cards.append(_card(f"{band.title}, {shown[-1].name}", shown[-1], band))
    before, after = _largest(result)
    return [
        *cards,
        ("memory_gain", number(gain.mean, sign=True), span(gain, sign=True)),
        ("context, tokens", f"{after:,}", f"of {before:,}, {_ratio(before, after)}"),
    ]


def _card(label: str, found: Retrieval, metric: MetricInfo) -> tuple[str, str, str]:
    figure = found.unmasked.figures[metric.name]
    return label, number(figure.mean, metric), span(figure, metric)


def _largest(result: MeasureResult) -> tuple[int, int]:
    return max((clip.uncompressed, clip.tokens) for clip in result.clips)


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.1f}× shorter" if after else "no memory"


def _row(result: MeasureResult, found: Retrieval, quality: Quality | None) -> dict[str, Any]:
    return {
        "name": found.name,
        "kind": found.kind,
        "meaning": MEANING[found.kind],
        "main": found.name == result.main,
        "cells": [_cell(quality, metric) for metric in result.metrics],
        "numbers": "" if found.numbers is None else f"{found.numbers:,}",
        "time": "" if found.seconds is None else f"{1000 * found.seconds:,.1f}",
    }


def _rates(result: MeasureResult, rates: ByRate) -> dict[str, Any]:
    """Give the rows by rate, charts of the metrics that all measures have, and their legend."""
    charted = [m for m in result.metrics if all(m.name in row.figures for row in rates.rows)]
    return {
        "clips": rates.clips,
        "rows": [
            {
                "label": row.label,
                "name": row.name,
                "meaning": MEANING[row.kind],
                "own": row.own and row.kind == "learned",
                "tokens": f"{row.tokens:,}" if row.tokens and row.kind in READS else "",
                "cells": [_figure(row.figures.get(m.name), m) for m in result.metrics],
            }
            for row in rates.rows
        ],
        "charts": [(metric, rate_chart(rates, metric)) for metric in charted],
        "marks": marks_of(rates),
    }


def _cell(quality: Quality | None, metric: MetricInfo) -> Cell:
    if quality is None:
        return Cell()
    return _figure(quality.figures[metric.name], metric)


def _figure(found: Interval | None, metric: MetricInfo | None = None, sign: bool = False) -> Cell:
    if found is None:
        return Cell()
    mean = number(found.mean, sign=sign) if metric is None else bare(found.mean, metric)
    return Cell(mean=mean, span=span(found, metric, sign=sign), n=found.n)


def _contexts(result: MeasureResult) -> list[tuple[str, int, int, int, str]]:
    """Give latent size, clips, tokens before and after, and their ratio."""
    counts = Counter((clip.size, clip.uncompressed, clip.tokens) for clip in result.clips)
    return [
        (size, clips, before, after, _ratio(before, after))
        for (size, before, after), clips in sorted(counts.items(), key=lambda item: -item[0][1])
    ]


def _gains(result: MeasureResult) -> list[tuple[str, str, Cell]]:
    gain = result.gain
    return [
        ("loss, true memory", "", _figure(gain.true)),
        ("loss, another clip's memory", "", _figure(gain.shuffled)),
        ("loss, no memory", "", _figure(gain.none)),
        ("memory_gain", "none − true; above 0 it helps", _figure(gain.gain, sign=True)),
        (
            "specific to the clip",
            "shuffled − true; above 0 it is this memory that helps",
            _figure(gain.specific, sign=True),
        ),
        (
            "shuffled against none",
            "shuffled − none; 0 or more, as it should be",
            _figure(gain.foreign, sign=True),
        ),
    ]
