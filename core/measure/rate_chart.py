"""Quality against context length: several rates, or several runs, on the same clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen
from markupsafe import Markup

from .beside import ByRate, RateRow
from .charts import DASHES, DOTS, LEARNED, Paint, chart
from .quantities import MetricInfo

UNDER = "tokens of context, median over clips (logarithmic)"


@frozen(kw_only=True)
class Mark:
    """How the rows of one retriever are drawn: a CSS colour, its marker or none, and dashes."""

    name: str
    kind: str
    rows: tuple[RateRow, ...]
    colour: str
    dashes: tuple[float, ...] = ()

    @property
    def dasharray(self) -> str:
        """The dashes as SVG wants them."""
        return " ".join(f"{x:g}" for x in self.dashes)


def marks_of(rates: ByRate) -> list[Mark]:
    """Give the rows by retriever, each with its style, as in the charts by age."""
    names = list(dict.fromkeys((row.name, row.kind) for row in rates.rows))
    learned = [name for name, kind in names if kind in ("learned", "part")]
    floors = [name for name, kind in names if kind == "floor"]
    return [_mark(rates, name, kind, learned, floors) for name, kind in names]


def _mark(
    rates: ByRate, name: str, kind: str, learned: Sequence[str], floors: Sequence[str]
) -> Mark:
    rows = tuple(row for row in rates.rows if (row.name, row.kind) == (name, kind))
    if kind in ("learned", "part"):
        colour = LEARNED[learned.index(name) % len(LEARNED)]
        return Mark(name=name, kind=kind, rows=rows, colour=colour)
    if kind == "ceiling":
        return Mark(name=name, kind=kind, rows=rows, colour="--ink")
    dashes = DOTS if kind == "guide" else DASHES[floors.index(name) % len(DASHES)]
    return Mark(name=name, kind=kind, rows=rows, colour="--muted", dashes=dashes)


def has_lengths(rates: ByRate) -> bool:
    """Whether memories of more than one length were measured."""
    return len({row.tokens for row in rates.rows if row.kind in ("learned", "part")}) > 1


def rate_chart(rates: ByRate, metric: MetricInfo) -> Markup:
    """Give a metric against context length, with intervals; what reads no memory lies across."""

    def draw(axes: Any, paint: Paint) -> None:
        axes.set_xscale("log")
        for mark in marks_of(rates):
            _points(axes, mark, metric, paint)
            _lines(axes, mark, metric, paint)
        _name_rates(axes, rates, paint)

    return chart(draw, f"{metric.title} against tokens of context", UNDER)


def _points(axes: Any, mark: Mark, metric: MetricInfo, paint: Paint) -> None:
    rows = sorted((r for r in mark.rows if r.tokens and metric.name in r.figures), key=_length)
    if not rows:
        return
    lengths, found = [_length(row) for row in rows], [row.figures[metric.name] for row in rows]
    colour, means = paint(mark.colour), [one.mean for one in found]
    learned = mark.kind in ("learned", "part")
    style = (0, mark.dashes) if mark.dashes else "-"
    axes.plot(
        lengths,
        means,
        color=colour,
        linewidth=1.6 if learned else 1.1,
        linestyle=style,
        marker="o" if learned else "D",
        markersize=5 if learned else 3.5,
    )
    if learned:
        low = [one.mean - (one.mean if one.low is None else one.low) for one in found]
        high = [(one.mean if one.high is None else one.high) - one.mean for one in found]
        axes.errorbar(lengths, means, yerr=[low, high], fmt="none", ecolor=colour, elinewidth=1)


def _lines(axes: Any, mark: Mark, metric: MetricInfo, paint: Paint) -> None:
    for row in mark.rows:
        if not row.tokens and metric.name in row.figures:
            style = (0, mark.dashes) if mark.dashes else "-"
            width = 0.9 if mark.kind == "ceiling" else 1.2
            height = row.figures[metric.name].mean
            axes.axhline(height, color=paint(mark.colour), linewidth=width, linestyle=style)


def _name_rates(axes: Any, rates: ByRate, paint: Paint) -> None:
    """Mark the lengths that were measured, each with its number and its rate."""
    named: dict[int, str] = {}
    for row in rates.rows:
        if row.tokens and row.kind in ("learned", "part"):
            named.setdefault(row.tokens, row.label if row.kind == "learned" else row.name)
    axes.set_xticks(list(named), [f"{tokens:,}\n{label}" for tokens, label in named.items()])
    axes.minorticks_off()
    axes.margins(x=0.15)


def _length(row: RateRow) -> int:
    return row.tokens or 0
