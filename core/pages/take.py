"""One self-contained HTML page that shows what a take says of itself (`core.take.findings`)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..take.figures import FrameFigures
from ..take.findings import Join, Seam, SectionLengths, SegmentFacts, TakeReport
from ..tools.files import whole_file, write_json
from ..tools.words import counted
from .charts import LEARNED, CssColours, LegendEntry, svg_chart
from .report import page_style, page_template

PICTURES = 24  # pairs at joins that a page shows
POINTS = 600  # of a line along time
STATES = {"error": "missed", "warning": "unclear", "note": "note"}  # classes of the style
LINE = 1.6


def write_take_report(report: TakeReport, figures: FrameFigures | None, folder: Path) -> Path:
    """Write report.json and report.html into a folder, each whole or not at all.

    Args:
        report: what the take says.
        figures: that it was made with, for charts and pictures; None: tables alone.
        folder: of the take; it is made.

    Returns:
        The path of the page.

    Raises:
        UserError: they cannot be written.
    """
    write_json(folder / "report.json", report.to_json())
    path = folder / "report.html"
    text = render_take(report, figures)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def render_take(report: TakeReport, figures: FrameFigures | None = None) -> str:
    """Return the page as text: no script, nothing from outside."""
    facts, seen = report.facts, {one.segment for one in report.findings}
    spent = list(dict.fromkeys(name for one in facts.segments for name in one.seconds))
    charted = len(facts.new) > 1
    findings = [(STATES[one.state], str(one.state), one.text) for one in report.findings]
    values = {
        "css": page_style(),
        "title": facts.name,
        "where": _where(report),
        "facts": facts,
        "report": report,
        "cards": _cards(report),
        "findings": findings or [("reached", "well", "Nothing stands out.")],
        "lengths": [_lengths(one, facts.fps) for one in report.sections],
        "joins": [_join(join, join.segment in seen) for join in report.joins],
        "pictures": _pictures(report, figures, seen) if figures is not None else [],
        "along": _along(report, figures) if figures is not None and figures.frames > 1 else [],
        "drift": report.drift,
        "drift_chart": _drift_chart(report) if charted and report.drift else None,
        "drift_legend": _legend([one.measure for one in report.drift]),
        "spent": spent,
        "spent_charts": _spent_charts(facts.new, spent) if charted else [],
        "spent_legend": _legend(spent),
        "gains": any(one.gain is not None for one in facts.segments),
        "segments": [
            {
                "one": one,
                "parts": ", ".join(f"{name} {count:,}" for name, count in one.parts.items()),
                "seconds": [
                    f"{one.seconds[name]:.2f}" if name in one.seconds else "–" for name in spent
                ],
            }
            for one in facts.segments
        ],
    }
    return page_template("take.html.jinja").render(values)


def _where(report: TakeReport) -> str:
    facts = report.facts
    count = len(facts.new)
    source = (
        f" behind {counted(facts.source_frames, 'frame')} of a source"
        if facts.source_frames
        else ""
    )
    return f"{counted(count, 'segment')}{source} at {facts.fps:g} frames a second"


def _cards(report: TakeReport) -> list[tuple[str, str, str]]:
    """Return the headline figures: label, figure, and what stands under it."""
    facts = report.facts
    frames = sum(one.frames for one in facts.new)
    seams = {one.segment for one in report.findings if one.check.startswith("seam")}
    cards = [("made", f"{frames / facts.fps:.2f} s", counted(frames, "frame"))]
    if report.joins:
        cards.append(("joins", str(len(report.joins)), f"{len(seams) or 'none'} to look at"))
    if report.drift:
        most = max(report.drift, key=lambda one: one.relative or 0.0)
        cards.append(("drift", f"{100 * (most.relative or 0.0):.0f} %", f"at most, {most.measure}"))
    if facts.new:
        last = facts.new[-1]
        cards.append(("memory", f"{last.tokens:,}", f"tokens, segment {last.number}"))
    took = sum(sum(one.seconds.values()) for one in facts.new)
    if took and frames:
        cards.append(
            ("seconds", f"{took:,.0f}", f"{took * facts.fps / frames:.1f} a second of video")
        )
    return cards


def _lengths(one: SectionLengths, fps: float) -> dict[str, Any]:
    delivered = "not counted" if one.delivered is None else counted(one.delivered, "frame")
    return {
        "number": one.number,
        "prompt": one.prompt,
        "asked": "until stopped" if one.asked is None else f"{one.asked:.2f} s",
        "snapped": f"{one.snapped / fps:.2f} s, {counted(one.snapped, 'frame')}",
        "delivered": delivered,
        "segments": f"{one.made} of {one.segments}",
    }


def _join(join: Join, found: bool) -> dict[str, Any]:
    return {
        "segment": join.segment,
        "at": f"{join.seconds:.2f} s",
        "stream": join.stream,
        "cut": "yes" if join.cut else "no",
        "content": "–" if join.content is None else f"{join.content:.2f}",
        "seams": [_seam(join.colour), _seam(join.motion)],
        "psnr": "" if join.psnr is None else f"{join.psnr:.1f} dB",
        "found": found,
    }


def _seam(seam: Seam | None) -> dict[str, str]:
    if seam is None:
        return {"step": "", "inside": ""}
    channel = f"{seam.channel} " if seam.channel else ""
    inside = "" if seam.inside is None else f"inside {seam.inside:.2f}"
    return {"step": f"{channel}{seam.step:.2f}", "inside": inside}


def _pictures(
    report: TakeReport, figures: FrameFigures, seen: set[int | None]
) -> list[dict[str, Any]]:
    """Return the frames at joins, those that findings are about before the others."""
    joins = [join for join in report.joins if join.frame in figures.pictures]
    chosen = sorted(joins, key=lambda join: (join.segment not in seen, join.segment))[:PICTURES]
    return [
        {
            "segment": join.segment,
            "at": f"{join.seconds:.2f} s",
            "before": _jpeg_uri(figures.pictures[join.frame][0]),
            "after": _jpeg_uri(figures.pictures[join.frame][1]),
        }
        for join in sorted(chosen, key=lambda join: join.segment)
    ]


def _jpeg_uri(data: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")


def _along(report: TakeReport, figures: FrameFigures) -> list[tuple[str, Markup]]:
    """Return charts of single frames along time: what they look like, and how they move."""
    fps, joins = report.facts.fps, [join.seconds for join in report.joins]
    series = (
        ("brightness, mean Y of 255", figures.colour[:, 0]),
        ("motion, difference from the frame before, of 255", figures.difference),
        (f"cuts, {figures.cut_measure}", figures.cuts),
    )
    return [(caption, _time_chart(values, fps, joins, caption)) for caption, values in series]


def _time_chart(
    values: np.ndarray[Any, Any], fps: float, joins: Sequence[float], caption: str
) -> Markup:
    """Draw a value a frame; of a long video the highest of frames that share a point."""
    size = -(-len(values) // POINTS)
    starts = np.arange(0, len(values), size)
    points = np.fmax.reduceat(values, starts)

    def draw(axes: Any, colours: CssColours) -> None:
        for join in joins:
            axes.axvline(join, color=colours("--rule"), linewidth=0.9)
        axes.plot(starts / fps, points, color=colours(LEARNED[0]), linewidth=1.1)
        axes.set_ylim(bottom=0)

    return svg_chart(draw, caption, "seconds of the video")


def _drift_chart(report: TakeReport) -> Markup:
    """Draw each measure by segment, the first one's mean as 100 %."""

    def draw(axes: Any, colours: CssColours) -> None:
        for index, one in enumerate(report.drift):
            if one.segments and one.segments[0] > 0:
                shares = [100 * mean / one.segments[0] for mean in one.segments]
                numbers = [made.number for made in report.facts.new][: len(shares)]
                _plot(axes, numbers, shares, colours(LEARNED[index % len(LEARNED)]))

    return svg_chart(draw, "drift by segment", "segment")


def _spent_charts(segments: Sequence[SegmentFacts], spent: Sequence[str]) -> list[Any]:
    """Return charts of seconds and tokens by segment."""
    numbers = [one.number for one in segments]

    def draw_seconds(axes: Any, colours: CssColours) -> None:
        for index, name in enumerate(spent):
            seconds = [one.seconds.get(name, 0.0) for one in segments]
            _plot(axes, numbers, seconds, colours(LEARNED[index % len(LEARNED)]))

    def draw_tokens(axes: Any, colours: CssColours) -> None:
        _plot(axes, numbers, [one.tokens for one in segments], colours("--ink"))

    charts = [("tokens of memory", svg_chart(draw_tokens, "tokens by segment", "segment"))]
    if spent:
        charts.insert(0, ("seconds", svg_chart(draw_seconds, "seconds by segment", "segment")))
    return charts


def _plot(axes: Any, numbers: Sequence[int], values: Sequence[float], colour: str) -> None:
    axes.plot(numbers, values, color=colour, linewidth=LINE, marker="o", markersize=3)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _legend(labels: Sequence[str]) -> list[LegendEntry]:
    return [
        LegendEntry(label=label, colour=LEARNED[i % len(LEARNED)], width=LINE, dasharray="")
        for i, label in enumerate(labels)
    ]
