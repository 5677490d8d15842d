"""What the demo says: figures, context lengths and the notes of its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from ..measure.charts import Paint, chart
from ..measure.result import MeasureResult
from .clip import CREDITS


def figures(result: MeasureResult) -> list[str]:
    """Give one line a retriever: its figures on the clip, unmasked."""
    rows = []
    for found in result.retrievals:
        parts = [
            f"{metric.title} {found.unmasked.figures[metric.name].mean:.2f} {metric.unit}".strip()
            for metric in result.metrics
        ]
        rows.append(f"  {found.name:<24} {found.kind:<8} {', '.join(parts)}")
    return rows


def context(result: MeasureResult) -> str:
    """Give the context length before and after compression."""
    row = result.clips[0]
    return (
        f"{row.uncompressed:,} tokens uncompressed, {row.tokens:,} as memory "
        f"({row.uncompressed / row.tokens:.1f}× shorter) for {row.seconds:.1f} s"
    )


def change(before: MeasureResult, after: MeasureResult, losses: Sequence[float]) -> str:
    """Give what training on the clip did to the first metric of the main retriever; a miss, too."""
    metric = before.metrics[0]
    old, new = (
        found.retrieval(found.main).unmasked.figures[metric.name].mean for found in (before, after)
    )
    better = metric.merit(new) > metric.merit(old)
    verdict = "training helped" if better else "so few steps did not help on this clip"
    unit = f" {metric.unit}" if metric.unit else ""
    digits = 2 if metric.unit else 3
    return (
        f"{before.main}: {metric.title} {old:.{digits}f} → {new:.{digits}f}{unit} "
        f"({new - old:+.{digits}f}), loss {trend(losses)}: {verdict}"
    )


def trend(losses: Sequence[float]) -> str:
    """Give the mean loss of the first and of the last quarter of the steps."""
    part = max(1, len(losses) // 4)
    first, last = (sum(some) / part for some in (losses[:part], losses[-part:]))
    return f"{first:.3f} → {last:.3f}"


def report_notes(
    before: MeasureResult, after: MeasureResult | None, losses: Sequence[float], *, own: bool
) -> tuple[str, ...]:
    """Give the notes of the report; `own`: the clip is the user's, not the built-in one."""
    notes: list[str] = []
    if after is None:
        notes.append("The memory has never seen this clip.")
    else:
        notes.append(
            f"The memory was trained for {len(losses)} steps on this very clip before it was "
            f"measured. {change(before, after, losses)}."
        )
        notes.append(loss_chart(losses))
    if not own:
        credits = "; ".join(f"{c.title} ({c.author}, {c.licence})" for c in CREDITS)
        notes.append(f"The clip is made from photographs: {credits}.")
    return tuple(notes)


def loss_chart(losses: Sequence[float]) -> Markup:
    """Give the loss by training step as inline SVG, with the mean of each five steps on it."""

    def draw(axes: Any, paint: Paint) -> None:
        steps = list(range(1, len(losses) + 1))
        line = {"marker": "o", "markersize": 3.0, "linewidth": 1.0}
        axes.plot(steps, list(losses), color=paint("--muted"), **line)
        means = [sum(losses[max(0, i - 5) : i]) / len(losses[max(0, i - 5) : i]) for i in steps]
        axes.plot(steps, means, color=paint("--s0"), linewidth=2.0)

    title = "loss by training step on this clip; bold: mean of the last five"
    return Markup("{}<br>{}").format(title.capitalize(), chart(draw, title, "training step"))
