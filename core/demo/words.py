"""What the demo says: figures, context lengths and the notes of its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


def report_notes(steps: int, video: Path | None) -> dict[str, Any]:
    """Give the title and the notes of the report."""
    lines = [
        f"The memory was trained for {steps} steps on this very clip before it was measured."
        if steps
        else "The memory has never seen this clip."
    ]
    if video is None:
        credits = "; ".join(f"{c.title} ({c.author}, {c.licence})" for c in CREDITS)
        lines.append(f"The clip is made from photographs: {credits}.")
    return {"title": "longtake demo", "notes": tuple(lines)}
