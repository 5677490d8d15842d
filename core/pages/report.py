"""One self-contained HTML page that shows what `measure` found.

The words and tables are made here (`_result_values` and below), the charts in `charts`, and the
page by `report.html.jinja` with `report.css` and `report.js` beside it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from attrs import frozen
from einops import rearrange
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ..measure.compare import RateTable, compare_rates
from ..measure.result import (
    GainFigures,
    Interval,
    MeasureResult,
    MetricInfo,
    Quality,
    RetrieverResult,
)
from ..measure.strips import Strip, StripRow, TimeSlider
from ..measure.verdict import format_ends, format_figure, format_number, verdict
from ..tools.files import whole_file
from ..tools.pictures import to_pil
from .charts import READS_MEMORY, age_chart, age_legend, has_lengths, rate_chart, rate_legend

HERE = Path(__file__).parent
WIDEST = 320  # pixels of a frame of a strip
BUDGET = 9_500_000  # characters that all sliders may take, so that a page stays below 15 MB
QUALITIES = (88, 80, 70, 55)  # of JPEG, for sliders
MEANING = {
    "ceiling": "the codec's own reconstruction",
    "learned": "from memory",
    "part": "from one part of the memory alone",
    "floor": "floor, reads the history itself",
    "guide": "guide, no bar to pass",
}


@frozen(kw_only=True)
class Page:
    """What a page shows beside its result, all of it optional.

    Attributes:
        strips: of `make_strips`, shown in their order.
        sliders: of `make_sliders`; where scripts are blocked, strips are all that is shown.
        rates: of `compare_rates`, where other measures stand beside the result.
        title: headline; None: the experiment's name.
        notes: paragraphs under the headline.
    """

    strips: Sequence[Strip] = ()
    sliders: Sequence[TimeSlider] = ()
    rates: RateTable | None = None
    title: str | None = None
    notes: Sequence[str] = ()


def write_report(result: MeasureResult | None, page: Page, path: Path) -> Path:
    """Write the page, whole or not at all, and return its path.

    Everything is inside the one file: style, charts (SVG), frames (JPEG), and where there are
    sliders the one script that moves them; its policy lets nothing else run or load. It follows
    light and dark, and reads on a phone and without scripts.

    Args:
        result: what was measured; None shows title, notes and frames only.
        page: what else is shown.
        path: of the HTML file; its folder is made.

    Raises:
        UserError: the file cannot be written.
    """
    text = render(result, page)
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def render(result: MeasureResult | None, page: Page) -> str:
    """Return the page as text."""
    metrics = result.metrics if result else ()
    script = _text("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    values = {
        "css": page_style(),
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",  # by which the page's policy knows the script
        "title": page.title or (result.experiment if result else "longtake"),
        "notes": list(page.notes),
        "strips": [_strip_values(strip, metrics) for strip in page.strips],
        "slider": _slider_values(page.sliders, metrics),
        "r": result,
    }
    if result is not None:
        values |= _result_values(result, page.rates)
    return page_template("report.html.jinja").render(values)


def page_template(name: str) -> jinja2.Template:
    """Return the template of a page that lies beside this file; what is put in is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_text(name))


def page_style() -> Markup:
    """Return the style of all pages."""
    return Markup(_text("report.css"))


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _strip_values(strip: Strip, metrics: Sequence[MetricInfo]) -> dict[str, Any]:
    return {
        "strip": strip,
        "caption": _caption(strip),
        "times": [f"{seconds:.1f} s" for seconds in strip.times],
        "rows": [_strip_row_values(row, metrics) for row in strip.rows],
    }


def _caption(shown: Strip | TimeSlider) -> str:
    """Return a caption, but none where it is only the clip's name in words."""
    name_in_words = shown.title.replace("-", " ").replace("_", " ")
    return "" if shown.caption == name_in_words else shown.caption


def _strip_row_values(row: StripRow, metrics: Sequence[MetricInfo]) -> dict[str, Any]:
    height, width = row.frames.shape[-2:]
    figures = [format_figure(row.figures[m.name], m) for m in metrics if m.name in row.figures]
    return {
        "label": row.label,
        "figure": figures[0] if figures else "",
        "images": [data_uri(frame) for frame in row.frames],
        "width": min(width, WIDEST),
        "height": round(height * min(1.0, WIDEST / width)),
    }


def data_uri(frame: Tensor) -> str:
    """Return a uint8 frame `[3, P, Q]` as a JPEG inside an address, 320 pixels wide at most."""
    picture = to_pil(frame)
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)))
    return _jpeg_uri(picture, quality=92, subsampling=0)


def _jpeg_uri(picture: Image.Image, *, quality: int, subsampling: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, subsampling=subsampling)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@frozen(kw_only=True)
class SpriteSheets:
    """Sliders as pictures: for each slider and panel all frames in one column, as addresses."""

    pictures: tuple[tuple[str, ...], ...]
    quality: int


def sprite_sheets(sliders: Sequence[TimeSlider], budget: int = BUDGET) -> SpriteSheets:
    """Return the pictures of sliders in the best JPEG quality, 55 to 88, that keeps to the budget.

    Frames of a slider stand under each other in one picture a panel: a page can then go to any of
    them without loading anything, and a few large pictures cost less than many small ones.

    Args:
        sliders: of `make_sliders`.
        budget: characters of all pictures; the least quality may exceed it.
    """
    sheets = SpriteSheets(pictures=(), quality=QUALITIES[0])
    for quality in QUALITIES:
        pictures = tuple(
            tuple(_sprite_sheet(panel.frames, quality) for panel in slider.panels)
            for slider in sliders
        )
        sheets = SpriteSheets(pictures=pictures, quality=quality)
        if sum(len(picture) for row in pictures for picture in row) <= budget:
            break
    return sheets


def _sprite_sheet(frames: Tensor, quality: int) -> str:
    column = to_pil(rearrange(frames, "k c p q -> c (k p) q"))
    return _jpeg_uri(column, quality=quality, subsampling=2)


def _slider_values(
    sliders: Sequence[TimeSlider], metrics: Sequence[MetricInfo]
) -> dict[str, Any] | None:
    if not sliders:
        return None
    sheets = sprite_sheets(sliders)
    unit = f" {metrics[0].unit}".rstrip() if metrics else ""
    views = [
        {
            "slider": slider,
            "caption": _caption(slider),
            "times": " ".join(f"{seconds:.1f}" for seconds in slider.times),
            "panels": [
                {
                    "label": panel.label,
                    "picture": picture,
                    "height": panel.frames.shape[-2],
                    "width": panel.frames.shape[-1],
                    "figures": " ".join(
                        format_number(x, metrics[0]) for x in panel.figures if metrics
                    ),
                    "unit": unit,
                }
                for panel, picture in zip(slider.panels, pictures, strict=True)
            ],
        }
        for slider, pictures in zip(sliders, sheets.pictures, strict=True)
    ]
    frames = max(len(slider.times) for slider in sliders)
    return {"views": views, "quality": sheets.quality, "frames": frames}


def _result_values(result: MeasureResult, rates: RateTable | None) -> dict[str, Any]:
    """Return all that the page shows of a result, figures as text."""
    masked = [one for one in result.retrievals if one.masked]
    rates = rates or compare_rates(result)
    columns = _clip_columns(result)
    return {
        "verdict": verdict(result),
        "cards": _cards(result),
        "rows": [_retriever_row(result, one, one.unmasked) for one in result.retrievals],
        "masked_rows": [_retriever_row(result, one, one.masked) for one in masked],
        "series": age_legend(result),
        "charts": [(metric, age_chart(result, metric)) for metric in result.metrics],
        "rates": _rate_values(result, rates) if has_lengths(rates) else None,
        "long_rows": _long_rows(result),
        "contexts": _contexts(result),
        "gains": _gains(result.gain),
        "continued": _gains(result.continuations) if result.continuations else [],
        "clip_columns": columns,
        "clips": [_clip_values(result, index, columns) for index in range(len(result.clips))],
        "spec": json.dumps(result.spec, indent=2, ensure_ascii=False),
    }


def _cards(result: MeasureResult) -> list[tuple[str, str, str]]:
    """Return the headline figures: label, figure, and what stands under it."""
    metric, gain = result.metrics[0], result.gain.gain
    samples = [one for one in result.retrievals if one.samples][:1]
    shown = [result.retrieval(result.main), *(s for s in samples if s.name != result.main)]
    cards = [_card(f"{metric.title}, {one.name}", one, metric) for one in shown]
    cards.append(_card("codec's ceiling", result.retrievals[0], metric))
    # A metric that equal frames give a number of is a share of the original, such as of detail.
    shares = [metric for metric in result.metrics if not isinstance(metric.goal, str)]
    cards += [_card(f"{share.title}, {shown[-1].name}", shown[-1], share) for share in shares[:1]]
    before, after = max((clip.uncompressed, clip.tokens) for clip in result.clips)
    return [
        *cards,
        ("memory_gain", format_figure(gain.mean, sign=True), format_ends(gain, sign=True)),
        ("context, tokens", f"{after:,}", f"of {before:,}, {_ratio(before, after)}"),
    ]


def _card(label: str, one: RetrieverResult, metric: MetricInfo) -> tuple[str, str, str]:
    figure = one.unmasked.figures[metric.name]
    return label, format_figure(figure.mean, metric), format_ends(figure, metric)


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.1f}× shorter" if after else "no memory"


@frozen(kw_only=True)
class Cell:
    """A figure in a table: its mean and its interval as text, empty where there is none."""

    mean: str = ""
    span: str = ""
    n: int | None = None


def _cell(figure: Interval | None, metric: MetricInfo | None = None, sign: bool = False) -> Cell:
    if figure is None:
        return Cell()
    return Cell(
        mean=format_number(figure.mean, metric, sign=sign),
        span=format_ends(figure, metric, sign=sign),
        n=figure.n,
    )


def _retriever_row(
    result: MeasureResult, one: RetrieverResult, quality: Quality | None
) -> dict[str, Any]:
    figures = quality.figures if quality else {}
    return {
        "name": one.name,
        "kind": one.kind,
        "meaning": MEANING[one.kind],
        "main": one.name == result.main,
        "cells": [_cell(figures.get(metric.name), metric) for metric in result.metrics],
        "numbers": "" if one.numbers is None else f"{one.numbers:,}",
        "time": "" if one.seconds is None else f"{1000 * one.seconds:,.1f}",
    }


def _rate_values(result: MeasureResult, rates: RateTable) -> dict[str, Any]:
    """Return the rows by rate, charts of the metrics that all measures have, and their legend."""
    charted = [m for m in result.metrics if all(m.name in row.figures for row in rates.rows)]
    return {
        "clips": rates.clips,
        "rows": [
            {
                "label": row.label,
                "name": row.name,
                "meaning": MEANING[row.kind],
                "own": row.own and row.kind == "learned",
                "tokens": f"{row.tokens:,}" if row.tokens and row.kind in READS_MEMORY else "",
                "cells": [_cell(row.figures.get(m.name), m) for m in result.metrics],
            }
            for row in rates.rows
        ],
        "charts": [(metric, rate_chart(rates, metric)) for metric in charted],
        "legend": rate_legend(rates),
    }


def _long_rows(result: MeasureResult) -> list[dict[str, Any]]:
    """Return a row for each long clip and retriever, figures without interval."""
    return [
        {
            "clip": row if place == 0 else None,
            "name": name,
            "values": [format_number(figures[metric.name], metric) for metric in result.metrics],
        }
        for row in result.long
        for place, (name, figures) in enumerate(row.unmasked.items())
    ]


def _contexts(result: MeasureResult) -> list[tuple[str, int, int, int, str]]:
    """Return latent size, clips, tokens before and after, and their ratio."""
    counts = Counter((clip.size, clip.uncompressed, clip.tokens) for clip in result.clips)
    return [
        (size, clips, before, after, _ratio(before, after))
        for (size, before, after), clips in sorted(counts.items(), key=lambda item: -item[0][1])
    ]


def _gains(gain: GainFigures) -> list[tuple[str, str, Cell]]:
    return [
        ("loss, true memory", "", _cell(gain.true)),
        ("loss, another clip's memory", "", _cell(gain.shuffled)),
        ("loss, no memory", "", _cell(gain.none)),
        ("memory_gain", "none − true; above 0 it helps", _cell(gain.gain, sign=True)),
        (
            "specific to the clip",
            "shuffled − true; above 0 it is this memory that helps",
            _cell(gain.specific, sign=True),
        ),
        (
            "shuffled against none",
            "shuffled − none; 0 or more, as it should be",
            _cell(gain.foreign, sign=True),
        ),
    ]


def _clip_columns(result: MeasureResult) -> list[tuple[str, str]]:
    """Return the columns of the clip table: retriever, and `unmasked` or `masked`."""
    return [
        (one.name, way)
        for one in result.retrievals
        for way in ("unmasked", *(("masked",) if one.masked else ()))
    ]


def _clip_values(
    result: MeasureResult, index: int, columns: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return one row of the clip table."""
    clip, metric = result.clips[index], result.metrics[0]
    figures = {"unmasked": clip.unmasked, "masked": clip.masked}
    gains = (clip.gain, clip.specific, clip.foreign)
    return {
        "clip": clip,
        "values": [format_number(figures[way][name][metric.name], metric) for name, way in columns],
        "gains": ["" if gain is None else format_figure(gain, sign=True) for gain in gains],
    }
