"""One self-contained HTML page that shows what `measure` found."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from attrs import frozen
from markupsafe import Markup

from ..files import whole_file
from .beside import ByRate
from .embed import WIDEST, data_uri, sheets
from .result import MeasureResult, MetricInfo
from .scrubs import Scrub
from .strips import Strip, StripRow
from .tables import views
from .words import bare, number

HERE = Path(__file__).parent


@frozen(kw_only=True)
class Page:
    """What a page shows beside its result, all of it optional.

    Attributes:
        strips: of `make_strips`, shown in their order.
        scrubs: of `make_scrubs`; where scripts are blocked, strips are all that is shown.
        rates: of `by_rate`, where other measures stand beside the result.
        title: headline; None: the experiment's name.
        notes: paragraphs under the headline.
    """

    strips: Sequence[Strip] = ()
    scrubs: Sequence[Scrub] = ()
    rates: ByRate | None = None
    title: str | None = None
    notes: Sequence[str] = ()


def write_report(
    result: MeasureResult | None,
    strips: Sequence[Strip],
    path: Path,
    *,
    scrubs: Sequence[Scrub] = (),
    rates: ByRate | None = None,
    title: str | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write the page, whole or not at all, and give its path.

    Everything is inside the one file: style, charts (SVG), frames (JPEG), and where there are
    scrubs the one script that slides them; its policy lets nothing else run or load. It follows
    light and dark, and reads on a phone and without scripts.

    Args:
        result: what was measured; None shows title, notes and frames only.
        strips: as in `Page`.
        path: of the HTML file; its folder is made.
        scrubs: as in `Page`.
        rates: as in `Page`.
        title: as in `Page`.
        notes: as in `Page`.

    Raises:
        UserError: the file cannot be written.
    """
    page = Page(strips=strips, scrubs=scrubs, rates=rates, title=title, notes=notes)
    text = render(result, page)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def render(result: MeasureResult | None, page: Page) -> str:
    """Give the page as text."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    metrics = result.metrics if result else ()
    values = {
        "title": page.title or (result.experiment if result else "longtake"),
        "notes": list(page.notes),
        "strips": [_strip_view(strip, metrics) for strip in page.strips],
        "scrub": _scrub_views(page.scrubs, metrics),
        "r": result,
        **_own_files(),
    }
    if result is not None:
        values |= views(result, page.rates)
    return environment.from_string(_text("report.html.jinja")).render(values)


def _own_files() -> dict[str, Any]:
    """Give style and script as they stand, and the hash by which the page's policy knows it."""
    script = _text("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return {
        "css": Markup(_text("report.css")),
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",
    }


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _scrub_views(scrubs: Sequence[Scrub], metrics: Sequence[MetricInfo]) -> dict[str, Any] | None:
    if not scrubs:
        return None
    made = sheets(scrubs)
    unit = f" {metrics[0].unit}".rstrip() if metrics else ""
    views = [
        {
            "scrub": scrub,
            "caption": "" if scrub.caption == caption_of(scrub.title) else scrub.caption,
            "times": " ".join(f"{seconds:.1f}" for seconds in scrub.times),
            "panels": [
                {
                    "label": panel.label,
                    "picture": picture,
                    "height": panel.frames.shape[-2],
                    "width": panel.frames.shape[-1],
                    "figures": " ".join(bare(x, metrics[0]) for x in panel.figures if metrics),
                    "unit": unit,
                }
                for panel, picture in zip(scrub.panels, pictures, strict=True)
            ],
        }
        for scrub, pictures in zip(scrubs, made.pictures, strict=True)
    ]
    return {"views": views, "quality": made.quality, "frames": max(len(s.times) for s in scrubs)}


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
