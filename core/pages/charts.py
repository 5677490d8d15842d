"""Charts as inline SVG whose colours follow the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen
from markupsafe import Markup

from ..measure.compare import ByRate, RateRow
from ..measure.result import MeasureResult, MetricInfo, Retrieval

LEARNED = tuple(f"--s{i}" for i in range(6))
DASHES = ((6.0, 2.5), (6.0, 2.0, 1.2, 2.0), (3.0, 1.5))  # of floors, in turn
DOTS = (1.2, 1.8)  # of guides


@frozen(kw_only=True)
class Series:
    """How one retriever is drawn: a CSS variable for its colour, a width, and dashes or none."""

    retrieval: Retrieval
    colour: str
    width: float
    dashes: tuple[float, ...]

    @property
    def label(self) -> str:
        """Its name; floors say how many numbers they keep of a clip, since that is their point."""
        found = self.retrieval
        if found.kind not in ("floor", "guide") or found.numbers is None:
            return found.name
        return f"{found.name} ({found.numbers:,} numbers)"

    @property
    def dasharray(self) -> str:
        """The dashes as SVG wants them."""
        return " ".join(f"{x * self.width:g}" for x in self.dashes)


def series_of(result: MeasureResult) -> list[Series]:
    """Return every retriever with a style of its own: learned solid, floors dashed, guides dotted."""
    learned = [r for r in result.retrievals if r.kind in ("learned", "part")]
    floors = [r for r in result.retrievals if r.kind == "floor"]
    return [_styled(found, learned, floors) for found in result.retrievals]


def _styled(found: Retrieval, learned: Sequence[Retrieval], floors: Sequence[Retrieval]) -> Series:
    if found.kind in ("learned", "part"):
        colour = LEARNED[learned.index(found) % len(LEARNED)]
        return Series(retrieval=found, colour=colour, width=2.0, dashes=())
    if found.kind == "ceiling":
        return Series(retrieval=found, colour="--ink", width=0.9, dashes=())
    if found.kind == "guide":
        return Series(retrieval=found, colour="--muted", width=1.6, dashes=DOTS)
    dashes = DASHES[floors.index(found) % len(DASHES)]
    return Series(retrieval=found, colour="--muted", width=1.2, dashes=dashes)


def age_chart(result: MeasureResult, metric: MetricInfo) -> Markup:
    """Return quality by age under unmasked retrieval, with the intervals of learned ones."""

    def draw(axes: Any, paint: Paint) -> None:
        for series in series_of(result):
            _draw(axes, series, metric, paint)

    under = "seconds before the end of the history"
    return chart(draw, f"{metric.title} by {under}", under)


def chart(draw: Callable[[Any, Paint], None], title: str, under: str) -> Markup:
    """Return what `draw` puts on axes as inline SVG; `under` is written under the axis."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    paint = Paint()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11}):
        figure = Figure(figsize=(5.4, 3.3), layout="constrained")
        axes = figure.add_subplot()
        draw(axes, paint)
        calm(axes, paint, under)
        stream = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return inline(stream.getvalue(), title, paint.found)


class Paint:
    """Gives each CSS variable a colour that nothing else has, to be replaced in the SVG."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def __call__(self, variable: str) -> str:
        """Return the colour that stands for a variable."""
        return self.found.setdefault(variable, f"#0a0b{len(self.found):02x}")


def _draw(axes: Any, series: Series, metric: MetricInfo, paint: Paint) -> None:
    bins = series.retrieval.unmasked.ages
    middles = [(b.start + b.end) / 2 for b in bins]
    found = [b.figures[metric.name] for b in bins]
    style = (0, series.dashes) if series.dashes else "-"
    colour = paint(series.colour)
    line = {"color": colour, "linewidth": series.width, "linestyle": style}
    marker = "o" if len(bins) == 1 or series.retrieval.kind in ("learned", "part") else None
    axes.plot(middles, [x.mean for x in found], marker=marker, markersize=3.5, **line)
    known = [x.low is not None for x in found]
    if series.retrieval.kind == "learned" and all(known):
        lows, highs = [x.low for x in found], [x.high for x in found]
        axes.fill_between(middles, lows, highs, color=colour, alpha=0.13, linewidth=0)


def calm(axes: Any, paint: Paint, under: str) -> None:
    """Leave of axes a base line, quiet grid lines and labels; `under` is the axis' label."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(paint("--rule"))
    axes.grid(axis="y", color=paint("--rule"), linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=paint("--muted"))
    axes.set_xlabel(under, color=paint("--muted"))


def inline(svg: str, title: str, colours: Mapping[str, str]) -> Markup:
    """Return an SVG file as an element of a page: size and font from CSS, no outside names."""
    body = svg[svg.index("<svg") + len("<svg") :]
    for variable, colour in colours.items():
        body = body.replace(colour, f"var({variable})")
    for pattern, new in _CLEAN:
        body = re.sub(pattern, new, body, flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", body))
    body = re.sub(r'\sid="([^"]*)"', lambda m: m[0] if m[1] in used else "", body)
    # An attribute's value is escaped by Markup.format; the body is matplotlib's own.
    return Markup('<svg role="img" aria-label="{}"').format(title) + Markup(body)


_CLEAN = (
    (r"<metadata>.*?</metadata>", ""),
    (r"<style.*?</style>", ""),
    (r'\sxmlns(:\w+)?="[^"]*"', ""),
    (r"xlink:href", "href"),
    (r"font-family: [^;\"]*;?", ""),
    (r"font: ([\d.]+px)[^;\"]*", r"font-size: \1"),
    (r'^([^>]*?)\swidth="[^"]*"', r"\1"),
    (r'^([^>]*?)\sheight="[^"]*"', r"\1"),
    (r'^([^>]*?)\sversion="[^"]*"', r"\1"),
)


# ⟦core/measure/rate_chart.py⟧ Quality against context length: several rates, or several runs, on the same clips.


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
    """Return the rows by retriever, each with its style, as in the charts by age."""
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
    """Return a metric against context length, with intervals; what reads no memory lies across."""

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
