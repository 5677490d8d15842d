"""Cards, charts and tables of the report, as the template reads them."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from attrs import frozen

from .charts import age_chart, series_of
from .figures import Interval
from .result import MeasureResult, MetricInfo, Quality, Retrieval
from .verdict import number, span, verdict

MEANING = {
    "ceiling": "the codec's own reconstruction",
    "learned": "from memory",
    "floor": "floor, reads the history itself",
    "guide": "guide, never passes the codec",
}


@frozen(kw_only=True)
class Cell:
    """A figure in a table: its mean and its interval as text, empty where there is none."""

    mean: str = ""
    span: str = ""
    n: int | None = None


def views(result: MeasureResult) -> dict[str, Any]:
    """Give all that the page shows of a result, figures as text."""
    return {
        "verdict": verdict(result),
        "cards": _cards(result),
        "rows": [_row(result, found) for found in result.retrievals],
        "series": series_of(result),
        "charts": [(metric, age_chart(result, metric)) for metric in result.metrics],
        "contexts": _contexts(result),
        "gains": _gains(result),
        "clip_columns": _clip_columns(result),
        "clips": [_clip_view(result, index) for index in range(len(result.clips))],
        "spec": json.dumps(result.spec, indent=2, ensure_ascii=False),
    }


def _cards(result: MeasureResult) -> list[tuple[str, str, str]]:
    """Give the headline figures: label, figure, and what stands under it."""
    metric, gain = result.metrics[0], result.gain.gain
    main, best = result.retrieval(result.main), result.retrievals[0]
    own, top = main.unmasked.figures[metric.name], best.unmasked.figures[metric.name]
    before, after = _largest(result)
    return [
        (f"{metric.title}, unmasked", number(own.mean, metric), span(own, metric)),
        ("codec's ceiling", number(top.mean, metric), span(top, metric)),
        ("memory_gain", number(gain.mean, sign=True), span(gain, sign=True)),
        ("context, tokens", f"{after:,}", f"of {before:,}, {_ratio(before, after)}"),
    ]


def _largest(result: MeasureResult) -> tuple[int, int]:
    return max((clip.uncompressed, clip.tokens) for clip in result.clips)


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.1f}× shorter" if after else "no memory"


def _row(result: MeasureResult, found: Retrieval) -> dict[str, Any]:
    return {
        "name": found.name,
        "kind": found.kind,
        "meaning": MEANING[found.kind],
        "main": found.name == result.main,
        "cells": [
            (_cell(found.unmasked, metric), _cell(found.masked, metric))
            for metric in result.metrics
        ],
        "numbers": "" if found.numbers is None else f"{found.numbers:,}",
        "time": "" if found.seconds is None else f"{1000 * found.seconds:,.1f}",
    }


def _cell(quality: Quality | None, metric: MetricInfo) -> Cell:
    if quality is None:
        return Cell()
    return _figure(quality.figures[metric.name], metric)


def _figure(found: Interval | None, metric: MetricInfo | None = None, sign: bool = False) -> Cell:
    if found is None:
        return Cell()
    bare = None if metric is None else number(found.mean, metric).removesuffix(f" {metric.unit}")
    mean = bare or number(found.mean, sign=sign)
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


def _clip_columns(result: MeasureResult) -> list[tuple[str, str]]:
    """Give the columns of the clip table: retriever, and `unmasked` or `masked`."""
    columns = [(found.name, "unmasked") for found in result.retrievals]
    masked = [(found.name, "masked") for found in result.retrievals if found.masked]
    return [*columns[:1], *sorted([*columns[1:], *masked], key=_order(result))]


def _order(result: MeasureResult) -> Any:
    names = [found.name for found in result.retrievals]
    return lambda column: (names.index(column[0]), column[1] == "masked")


def _clip_view(result: MeasureResult, index: int) -> dict[str, Any]:
    clip, metric = result.clips[index], result.metrics[0]
    figures = {"unmasked": clip.unmasked, "masked": clip.masked}
    values = [figures[how][name][metric.name] for name, how in _clip_columns(result)]
    gains = (clip.gain, clip.specific, clip.foreign)
    return {
        "clip": clip,
        "values": [number(v, metric).removesuffix(f" {metric.unit}") for v in values],
        "gains": ["" if g is None else number(g, sign=True) for g in gains],
    }
