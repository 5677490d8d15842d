"""One self-contained HTML page that shows what `measure` found."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from torch import Tensor

from ..files import whole_file
from ..pictures import to_pil
from .result import MeasureResult, MetricInfo
from .strips import Strip, StripRow
from .tables import views
from .verdict import number

WIDEST = 320  # pixels of a frame in the page


def write_report(
    result: MeasureResult | None,
    strips: Sequence[Strip],
    path: Path,
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the page, whole or not at all, and give its path.

    Everything is inside the one file: style, charts (SVG) and frames (JPEG). It asks for nothing
    from outside, runs no script, follows light and dark, and reads on a phone.

    Args:
        result: what was measured; None shows title, notes and strips only.
        strips: of `make_strips`, shown in their order.
        path: of the HTML file; its folder is made.
        title: headline; default: the experiment's name.
        notes: paragraphs under the headline.

    Raises:
        UserError: the file cannot be written.
    """
    page = render(result, strips, title=title, notes=notes)
    with whole_file(path) as part:
        part.write_text(page, encoding="utf-8")
    return path


def render(
    result: MeasureResult | None,
    strips: Sequence[Strip],
    *,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Give the page as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    headline = title or (result.experiment if result else "longtake")
    metrics = result.metrics if result else ()
    shown = [_strip_view(strip, metrics) for strip in strips]
    values = {"title": headline, "notes": list(notes), "strips": shown, "r": result}
    if result is not None:
        values |= views(result)
    return environment.from_string(source).render(values)


def _strip_view(strip: Strip, metrics: Sequence[MetricInfo]) -> dict[str, Any]:
    return {
        "strip": strip,
        "caption": "" if strip.caption == caption_of(strip.title) else strip.caption,
        "times": [f"{seconds:.1f} s" for seconds in strip.times],
        "rows": [_strip_row(row, metrics) for row in strip.rows],
    }


def caption_of(name: str) -> str:
    """Give the caption that a clip without one gets: its name, which need not be told twice."""
    return name.replace("-", " ").replace("_", " ")


def _strip_row(row: StripRow, metrics: Sequence[MetricInfo]) -> dict[str, Any]:
    height, width = row.frames.shape[-2:]
    shown = [number(row.figures[m.name], m) for m in metrics if m.name in row.figures]
    return {
        "label": row.label,
        "figure": shown[0] if shown else "",
        "images": [data_uri(frame) for frame in row.frames],
        "width": min(width, WIDEST),
        "height": round(height * min(1.0, WIDEST / width)),
    }


def data_uri(frame: Tensor) -> str:
    """Give a uint8 frame `[3, P, Q]` as a JPEG inside an address, 320 pixels wide at most."""
    picture = to_pil(frame)
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=92, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
