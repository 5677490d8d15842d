"""Charts as inline SVG whose colours follow the page, light or dark: quality by age and by rate."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import Any

from attrs import frozen
from markupsafe import Markup

from ..measure.compare import RateRow, RateTable
from ..measure.result import MeasureResult, MetricInfo, RetrieverResult

READS_MEMORY = ("learned", "part")  # kinds of retrievers
LEARNED = tuple(f"--s{i}" for i in range(6))  # CSS variables
DASHES = ((6.0, 2.5), (6.0, 2.0, 1.2, 2.0), (3.0, 1.5))  # of floors, in turn
DOTS = (1.2, 1.8)  # of guides
WIDTHS = {"learned": 2.0, "part": 2.0, "ceiling": 0.9, "guide": 1.6, "floor": 1.2}  # by kind
RATE_LEGEND_WIDTH = 1.4


@frozen(kw_only=True)
class LineStyle:
    """How a retriever is drawn: a CSS variable for its colour, and dashes or none."""

    colour: str
    dashes: tuple[float, ...] = ()

    @property
    def linestyle(self) -> Any:
        """The dashes as matplotlib takes them; it scales them by the width of the line."""
        return (0, self.dashes) if self.dashes else "-"


@frozen(kw_only=True)
class LegendEntry:
    """A line of a legend: what it says, and its stroke as SVG takes it ("": no dashes)."""

    label: str
    colour: str
    width: float
    dasharray: str


def line_styles(kinds: Mapping[str, str]) -> dict[str, LineStyle]:
    """Return a style for each retriever by name: learned solid, floors dashed, guides dotted.

    Args:
        kinds: of the retrievers, by name.
    """
    learned = [name for name, kind in kinds.items() if kind in READS_MEMORY]
    floors = [name for name, kind in kinds.items() if kind == "floor"]

    def style(name: str, kind: str) -> LineStyle:
        if kind in READS_MEMORY:
            return LineStyle(colour=LEARNED[learned.index(name) % len(LEARNED)])
        if kind == "ceiling":
            return LineStyle(colour="--ink")
        dashes = DOTS if kind == "guide" else DASHES[floors.index(name) % len(DASHES)]
        return LineStyle(colour="--muted", dashes=dashes)

    return {name: style(name, kind) for name, kind in kinds.items()}


class CssColours:
    """Stands a colour that nothing else has for each CSS variable, to be replaced in the SVG."""

    def __init__(self) -> None:
        self.used: dict[str, str] = {}  # colours by variable

    def __call__(self, variable: str) -> str:
        """Return the colour that stands for a variable."""
        return self.used.setdefault(variable, f"#0a0b{len(self.used):02x}")


def svg_chart(draw: Callable[[Any, CssColours], None], title: str, under: str) -> Markup:
    """Return what `draw` puts on axes as inline SVG.

    Args:
        draw: called with matplotlib axes, and what gives a colour for a CSS variable.
        title: what the chart shows, for those who cannot see it.
        under: the label of the horizontal axis.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colours = CssColours()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 11}):
        figure = Figure(figsize=(5.4, 3.3), layout="constrained")
        axes = figure.add_subplot()
        draw(axes, colours)
        _quieten(axes, colours, under)
        stream = io.StringIO()
        no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    return _inline(stream.getvalue(), title, colours.used)


def _quieten(axes: Any, colours: CssColours, under: str) -> None:
    """Leave of axes a base line, quiet grid lines and labels."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(colours("--rule"))
    axes.grid(axis="y", color=colours("--rule"), linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=colours("--muted"))
    axes.set_xlabel(under, color=colours("--muted"))


def _inline(svg: str, title: str, colours: Mapping[str, str]) -> Markup:
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


def age_chart(result: MeasureResult, metric: MetricInfo) -> Markup:
    """Return quality by age under unmasked retrieval, with the intervals of learned retrievers."""
    styles = _age_styles(result)

    def draw(axes: Any, colours: CssColours) -> None:
        for one in result.retrievals:
            _draw_ages(axes, one, styles[one.name], metric, colours)

    under = "seconds before the end of the history"
    return svg_chart(draw, f"{metric.title} by {under}", under)


def age_legend(result: MeasureResult) -> list[LegendEntry]:
    """Return the legend of the charts by age: every retriever."""
    styles = _age_styles(result)
    return [
        LegendEntry(
            label=_age_label(one),
            colour=styles[one.name].colour,
            width=WIDTHS[one.kind],
            dasharray=" ".join(f"{x * WIDTHS[one.kind]:g}" for x in styles[one.name].dashes),
        )
        for one in result.retrievals
    ]


def _age_styles(result: MeasureResult) -> dict[str, LineStyle]:
    return line_styles({one.name: one.kind for one in result.retrievals})


def _age_label(one: RetrieverResult) -> str:
    """Return a name; floors say how many numbers they keep of a clip, since that is their point."""
    if one.kind not in ("floor", "guide") or one.numbers is None:
        return one.name
    return f"{one.name} ({one.numbers:,} numbers)"


def _draw_ages(
    axes: Any, one: RetrieverResult, style: LineStyle, metric: MetricInfo, colours: CssColours
) -> None:
    bins = one.unmasked.ages
    middles = [(b.start + b.end) / 2 for b in bins]
    figures = [b.figures[metric.name] for b in bins]
    colour = colours(style.colour)
    line = {"color": colour, "linewidth": WIDTHS[one.kind], "linestyle": style.linestyle}
    marker = "o" if len(bins) == 1 or one.kind in READS_MEMORY else None
    axes.plot(middles, [x.mean for x in figures], marker=marker, markersize=3.5, **line)
    if one.kind == "learned" and all(x.low is not None for x in figures):
        lows, highs = [x.low for x in figures], [x.high for x in figures]
        axes.fill_between(middles, lows, highs, color=colour, alpha=0.13, linewidth=0)


def has_lengths(rates: RateTable) -> bool:
    """Return whether memories of more than one length were measured."""
    return len({row.tokens for row in rates.rows if row.kind in READS_MEMORY}) > 1


def rate_chart(rates: RateTable, metric: MetricInfo) -> Markup:
    """Return a metric against context length, with intervals; what reads no memory lies across."""
    styles = _rate_styles(rates)

    def draw(axes: Any, colours: CssColours) -> None:
        axes.set_xscale("log")
        for name, style in styles.items():
            rows = [row for row in rates.rows if row.name == name and metric.name in row.figures]
            _draw_points(axes, [row for row in rows if row.tokens], style, metric, colours)
            for row in rows:
                if not row.tokens:
                    height = row.figures[metric.name].mean
                    width = 0.9 if row.kind == "ceiling" else 1.2
                    line = {"linewidth": width, "linestyle": style.linestyle}
                    axes.axhline(height, color=colours(style.colour), **line)
        _name_lengths(axes, rates)

    under = "tokens of context, median over clips (logarithmic)"
    return svg_chart(draw, f"{metric.title} against tokens of context", under)


def rate_legend(rates: RateTable) -> list[LegendEntry]:
    """Return the legend of the charts by rate: every retriever of every measure."""
    return [
        LegendEntry(
            label=name,
            colour=style.colour,
            width=RATE_LEGEND_WIDTH,
            dasharray=" ".join(f"{x:g}" for x in style.dashes),
        )
        for name, style in _rate_styles(rates).items()
    ]


def _rate_styles(rates: RateTable) -> dict[str, LineStyle]:
    return line_styles({row.name: row.kind for row in rates.rows})


def _draw_points(
    axes: Any, rows: list[RateRow], style: LineStyle, metric: MetricInfo, colours: CssColours
) -> None:
    """Draw the rows of one retriever that have a context length, joined by a line."""
    if not rows:
        return
    rows = sorted(rows, key=lambda row: row.tokens or 0)
    lengths, figures = [row.tokens for row in rows], [row.figures[metric.name] for row in rows]
    colour, means = colours(style.colour), [figure.mean for figure in figures]
    learned = rows[0].kind in READS_MEMORY
    axes.plot(
        lengths,
        means,
        color=colour,
        linewidth=1.6 if learned else 1.1,
        linestyle=style.linestyle,
        marker="o" if learned else "D",
        markersize=5 if learned else 3.5,
    )
    if learned:
        low = [x.mean - (x.mean if x.low is None else x.low) for x in figures]
        high = [(x.mean if x.high is None else x.high) - x.mean for x in figures]
        axes.errorbar(lengths, means, yerr=[low, high], fmt="none", ecolor=colour, elinewidth=1)


def _name_lengths(axes: Any, rates: RateTable) -> None:
    """Mark the lengths that were measured, each with its tokens and its rate."""
    names: dict[int, str] = {}
    for row in rates.rows:
        if row.tokens and row.kind in READS_MEMORY:
            names.setdefault(row.tokens, row.label if row.kind == "learned" else row.name)
    axes.set_xticks(list(names), [f"{tokens:,}\n{name}" for tokens, name in names.items()])
    axes.minorticks_off()
    axes.margins(x=0.15)
