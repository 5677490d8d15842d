"""Tables of single clips, as the template reads them."""

from __future__ import annotations

from typing import Any

from .result import MeasureResult
from .words import bare, number


def long_rows(result: MeasureResult) -> list[dict[str, Any]]:
    """Give a row for each long clip and retriever, figures without interval."""
    return [
        {
            "clip": row if place == 0 else None,
            "name": name,
            "values": [bare(figures[metric.name], metric) for metric in result.metrics],
        }
        for row in result.long
        for place, (name, figures) in enumerate(row.unmasked.items())
    ]


def clip_columns(result: MeasureResult) -> list[tuple[str, str]]:
    """Give the columns of the clip table: retriever, and `unmasked` or `masked`."""
    columns = [(found.name, "unmasked") for found in result.retrievals]
    masked = [(found.name, "masked") for found in result.retrievals if found.masked]
    return [*columns[:1], *sorted([*columns[1:], *masked], key=_order(result))]


def _order(result: MeasureResult) -> Any:
    names = [found.name for found in result.retrievals]
    return lambda column: (names.index(column[0]), column[1] == "masked")


def clip_view(result: MeasureResult, index: int) -> dict[str, Any]:
    """Give one row of the clip table."""
    clip, metric = result.clips[index], result.metrics[0]
    figures = {"unmasked": clip.unmasked, "masked": clip.masked}
    values = [figures[how][name][metric.name] for name, how in clip_columns(result)]
    gains = (clip.gain, clip.specific, clip.foreign)
    return {
        "clip": clip,
        "values": [bare(value, metric) for value in values],
        "gains": ["" if g is None else number(g, sign=True) for g in gains],
    }
