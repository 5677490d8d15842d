"""One self-contained HTML page that shows what `measure` found."""

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
import torch
from attrs import frozen
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ..measure.compare import ByRate, by_rate
from ..measure.result import Interval, MeasureResult, MetricInfo, Quality, Retrieval
from ..measure.strips import Scrub, Strip, StripRow
from ..measure.verdict import bare, number, span, verdict
from ..tools.files import whole_file
from ..tools.pictures import to_pil
from .charts import age_chart, has_lengths, marks_of, rate_chart, series_of

# ⟦core/measure/embed.py⟧ Pictures inside the page, as JPEG in an address.


WIDEST = 320  # pixels of a frame of a strip
BUDGET = 9_500_000  # characters that all scrubs may take, so that a page stays below 15 MB
QUALITIES = (88, 80, 70, 55)


def data_uri(frame: Tensor) -> str:
    """Return a uint8 frame `[3, P, Q]` as a JPEG inside an address, 320 pixels wide at most."""
    picture = to_pil(frame)
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)))
    return address(picture, quality=92, subsampling=0)


def address(picture: Image.Image, *, quality: int, subsampling: int) -> str:
    """Return a picture as a JPEG inside an address."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, subsampling=subsampling)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@frozen(kw_only=True)
class Sheets:
    """Scrubs as pictures: for each scrub and panel all frames in one column, and their quality."""

    pictures: tuple[tuple[str, ...], ...]
    quality: int


def sheets(scrubs: Sequence[Scrub], budget: int = BUDGET) -> Sheets:
    """Return the pictures of scrubs in the best JPEG quality, 55 to 88, that keeps to the budget.

    Frames of a scrub stand under each other in one picture a panel: a page can then go to any of
    them without loading anything, and a few large pictures cost less than many small ones.
    """
    found = Sheets(pictures=(), quality=QUALITIES[0])
    for quality in QUALITIES:
        pictures = tuple(tuple(_sheet(p.frames, quality) for p in s.panels) for s in scrubs)
        found = Sheets(pictures=pictures, quality=quality)
        if sum(len(picture) for row in pictures for picture in row) <= budget:
            break
    return found


def _sheet(frames: Tensor, quality: int) -> str:
    column = to_pil(torch.cat(list(frames), dim=1))
    return address(column, quality=quality, subsampling=2)


# ⟦core/measure/clip_tables.py⟧ Tables of single clips, as the template reads them.


def long_rows(result: MeasureResult) -> list[dict[str, Any]]:
    """Return a row for each long clip and retriever, figures without interval."""
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
    """Return the columns of the clip table: retriever, and `unmasked` or `masked`."""
    columns = [(found.name, "unmasked") for found in result.retrievals]
    masked = [(found.name, "masked") for found in result.retrievals if found.masked]
    return [*columns[:1], *sorted([*columns[1:], *masked], key=_order(result))]


def _order(result: MeasureResult) -> Any:
    names = [found.name for found in result.retrievals]
    return lambda column: (names.index(column[0]), column[1] == "masked")


def clip_view(result: MeasureResult, index: int) -> dict[str, Any]:
    """Return one row of the clip table."""
    clip, metric = result.clips[index], result.metrics[0]
    figures = {"unmasked": clip.unmasked, "masked": clip.masked}
    values = [figures[how][name][metric.name] for name, how in clip_columns(result)]
    gains = (clip.gain, clip.specific, clip.foreign)
    return {
        "clip": clip,
        "values": [bare(value, metric) for value in values],
        "gains": ["" if g is None else number(g, sign=True) for g in gains],
    }


# ⟦core/measure/tables.py⟧ Cards, charts and tables of the report, as the template reads them.


READS = ("learned", "part")  # kinds that read memory
MEANING = {
    "ceiling": "the codec's own reconstruction",
    "learned": "from memory",
    "part": "from one part of the memory alone",
    "floor": "floor, reads the history itself",
    "guide": "guide, never passes the codec",
}


@frozen(kw_only=True)
class Cell:
    """A figure in a table: its mean and its interval as text, empty where there is none."""

    mean: str = ""
    span: str = ""
    n: int | None = None


def views(result: MeasureResult, rates: ByRate | None = None) -> dict[str, Any]:
    """Return all that the page shows of a result, figures as text."""
    masked = [found for found in result.retrievals if found.masked]
    rates = rates or by_rate(result)
    return {
        "verdict": verdict(result),
        "cards": _cards(result),
        "rows": [_row(result, found, found.unmasked) for found in result.retrievals],
        "masked_rows": [_row(result, found, found.masked) for found in masked],
        "series": series_of(result),
        "charts": [(metric, age_chart(result, metric)) for metric in result.metrics],
        "rates": _rates(result, rates) if has_lengths(rates) else None,
        "long_rows": long_rows(result),
        "contexts": _contexts(result),
        "gains": _gains(result),
        "clip_columns": clip_columns(result),
        "clips": [clip_view(result, index) for index in range(len(result.clips))],
        "spec": json.dumps(result.spec, indent=2, ensure_ascii=False),
    }


def _cards(result: MeasureResult) -> list[tuple[str, str, str]]:
    """Return the headline figures: label, figure, and what stands under it."""
    metric, gain = result.metrics[0], result.gain.gain
    samples = [found for found in result.retrievals if found.samples][:1]
    shown = [result.retrieval(result.main), *(s for s in samples if s.name != result.main)]
    cards = [_card(f"{metric.title}, {found.name}", found, metric) for found in shown]
    cards.append(_card("codec's ceiling", result.retrievals[0], metric))
    if band := result.metric("high-band"):
        cards.append(_card(f"{band.title}, {shown[-1].name}", shown[-1], band))
    before, after = _largest(result)
    return [
        *cards,
        ("memory_gain", number(gain.mean, sign=True), span(gain, sign=True)),
        ("context, tokens", f"{after:,}", f"of {before:,}, {_ratio(before, after)}"),
    ]


def _card(label: str, found: Retrieval, metric: MetricInfo) -> tuple[str, str, str]:
    figure = found.unmasked.figures[metric.name]
    return label, number(figure.mean, metric), span(figure, metric)


def _largest(result: MeasureResult) -> tuple[int, int]:
    return max((clip.uncompressed, clip.tokens) for clip in result.clips)


def _ratio(before: int, after: int) -> str:
    return f"{before / after:.1f}× shorter" if after else "no memory"


def _row(result: MeasureResult, found: Retrieval, quality: Quality | None) -> dict[str, Any]:
    return {
        "name": found.name,
        "kind": found.kind,
        "meaning": MEANING[found.kind],
        "main": found.name == result.main,
        "cells": [_cell(quality, metric) for metric in result.metrics],
        "numbers": "" if found.numbers is None else f"{found.numbers:,}",
        "time": "" if found.seconds is None else f"{1000 * found.seconds:,.1f}",
    }


def _rates(result: MeasureResult, rates: ByRate) -> dict[str, Any]:
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
                "tokens": f"{row.tokens:,}" if row.tokens and row.kind in READS else "",
                "cells": [_figure(row.figures.get(m.name), m) for m in result.metrics],
            }
            for row in rates.rows
        ],
        "charts": [(metric, rate_chart(rates, metric)) for metric in charted],
        "marks": marks_of(rates),
    }


def _cell(quality: Quality | None, metric: MetricInfo) -> Cell:
    if quality is None:
        return Cell()
    return _figure(quality.figures[metric.name], metric)


def _figure(found: Interval | None, metric: MetricInfo | None = None, sign: bool = False) -> Cell:
    if found is None:
        return Cell()
    mean = number(found.mean, sign=sign) if metric is None else bare(found.mean, metric)
    return Cell(mean=mean, span=span(found, metric, sign=sign), n=found.n)


def _contexts(result: MeasureResult) -> list[tuple[str, int, int, int, str]]:
    """Return latent size, clips, tokens before and after, and their ratio."""
    counts = Counter((clip.size, clip.uncompressed, clip.tokens) for clip in result.clips)
    return [
        (size, clips, before, after, _ratio(before, after))
        for (size, before, after), clips in sorted(counts.items(), key=lambda item: -item[0][1])
    ]


def _gains(result: MeasureResult) -> list[tuple[str, str, Cell]]:
    gain = result.gain
    return [
        ("loss, true memory", "", _figure(gain.true)),
        ("loss, another clip's memory", "", _figure(gain.shuffled)),
        ("loss, no memory", "", _figure(gain.none)),
        ("memory_gain", "none − true; above 0 it helps", _figure(gain.gain, sign=True)),
        (
            "specific to the clip",
            "shuffled − true; above 0 it is this memory that helps",
            _figure(gain.specific, sign=True),
        ),
        (
            "shuffled against none",
            "shuffled − none; 0 or more, as it should be",
            _figure(gain.foreign, sign=True),
        ),
    ]


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
    """Return the page as text."""
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
    """Return style and script as they stand, and the hash by which the page's policy knows it."""
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
    """Return the caption that a clip without one gets: its name, which need not be told twice."""
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
