"""The report: one whole page that asks for nothing, and shows what was measured."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from longtake.core.errors import UserError
from longtake.core.pages.charts import line_styles
from longtake.core.pages.report import Page, data_uri, render, sprite_sheets, write_report

from .conftest import HOSTILE

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Parsed(HTMLParser):
    """Checks that elements close in order, and keeps tags, attributes and text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def text(result, strips, sliders):
    notes = ["one note", "<b>two</b>"]
    return render(result, Page(strips=strips, sliders=sliders, notes=notes))


@pytest.fixture(scope="module")
def page(text):
    return Parsed(text)


def test_it_is_balanced_and_made_for_phones_too(page):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert len(page.all("table")) == 6 and len(page.all("h1")) == 1
    scrolled = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(scrolled) == 6 + 3  # every table and strip scrolls inside its own box


def test_nothing_comes_from_outside_and_only_its_own_script_runs(page, text):
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "base", "form"}
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#"))
        assert not any(name.startswith("on") for name in attributes)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    (policy,) = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    scripts = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = hashlib.sha256(scripts[0].encode()).digest()
    assert len(scripts) == 1 and "default-src 'none'" in policy
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in policy
    assert not re.search(r"fetch|XMLHttp|import|eval|innerHTML", scripts[0])


def test_sliders_are_native_and_named_and_hidden_until_the_script_runs(page, text, sliders):
    inputs = page.all("input")
    labels = {a["for"] for a in page.all("label")}
    assert len(inputs) == len(sliders) and {a["id"] for a in inputs} == labels
    for native, slider in zip(inputs, sliders, strict=True):
        assert native["type"] == "range" and native["max"] == str(len(slider.times) - 1)
        assert [float(x) for x in native["data-times"].split()] == pytest.approx(
            slider.times, abs=0.051
        )
    (section,) = [a for a in page.all("section") if "scrubs" in a.get("class", "")]
    assert "hidden" in section and "needs-script" in section["class"]
    assert "Scripts are blocked here" in page.text and "<noscript>" in text
    labelled = [a["aria-label"] for a in page.all("canvas")]
    assert labelled == ["original", "oracle", "upsample"] * len(sliders)


@pytest.mark.slow
def test_a_page_without_sliders_has_no_script(result, strips):
    page = Parsed(render(result, Page(strips=strips)))
    assert not page.all("script") and not page.all("input") and page.all("img")


def test_sliders_show_the_same_frames_in_every_panel(sliders, result, store):
    assert [len(slider.times) for slider in sliders] == [5, 5]
    for slider in sliders:
        assert [panel.label for panel in slider.panels] == ["original", "oracle", "upsample"]
        assert {panel.frames.shape for panel in slider.panels} == {(5, 3, 64, 96)}
        assert [len(panel.figures) for panel in slider.panels] == [0, 5, 5]
        record = next(r for r in store.records if r.name == slider.title and not r.mirror)
        pixels = store.window(record, 0, record.latents, [], True).pixels[0]
        for time, frame in zip(slider.times, slider.panels[0].frames, strict=True):
            assert torch.equal(frame, pixels[:, round(time * store.fps)])


def test_sheets_keep_to_their_budget_and_hold_every_frame(sliders):
    fine, coarse = sprite_sheets(sliders), sprite_sheets(sliders, budget=1)
    assert (fine.quality, coarse.quality) == (88, 55)
    size = [sum(map(len, sum(found.pictures, ()))) for found in (fine, coarse)]
    assert size[1] < size[0]
    data = base64.b64decode(fine.pictures[0][0].partition(",")[2])
    sheet = torch.from_numpy(np.asarray(Image.open(io.BytesIO(data))).copy()).movedim(-1, 0)
    assert sheet.shape == (3, 5 * 64, 96)
    gap = sheet[:, 64:128].float() - sliders[0].panels[0].frames[1].float()
    assert float(gap.abs().mean()) < 8


def test_a_metric_that_cannot_run_has_its_column(page, text):
    assert "WANTED was not measured: it needs a <b>crystal</b> ball." in page.text
    assert "<b>crystal" not in text
    rows = [a for a in page.all("td") if a.get("class") == "none"]
    assert len(rows) == 7 + 2 and page.text.count("not measured") >= 9  # unmasked and masked rows


def test_long_clips_are_listed_without_interval(page, result):
    assert "Longer: 2.7 s" in page.text
    figure = result.long[1].unmasked["flow"]["psnr"]
    assert f"{figure:.2f}" in page.text


def test_hostile_words_stay_words(page, text):
    assert HOSTILE in page.text and "<script>alert" not in text and "<b>two" not in text
    assert "<b>two</b>" in page.text


def test_ids_are_unique_and_references_hold(page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    used = {a["href"][1:] for a in page.all("use")}
    used |= {
        m for _, a in page.tags for m in re.findall(r"url\(#([^)]+)\)", a.get("clip-path", ""))
    }
    assert len(ids) == len(set(ids)) and used and used <= set(ids)


def test_colours_follow_the_page(text, result):
    charts = re.findall(r"<svg role.*?</svg>", text, flags=re.DOTALL)
    assert len(charts) == len(result.metrics) and all("var(--muted)" in chart for chart in charts)
    assert not any(re.search(r"(fill|stroke): #", chart) for chart in charts)
    assert "prefers-color-scheme: dark" in text
    used = set(re.findall(r"var\((--\w+)\)", text))
    assert used <= set(re.findall(r"(--\w+):", text))


def test_it_shows_figures_with_n_floors_and_misses(page, result):
    for found in result.retrievals:
        assert found.name in page.text
        assert f"{found.unmasked.figures['psnr'].mean:.2f}" in page.text
    assert "n 4" in page.text and "missed" in page.text and "runs/x" in page.text
    assert f"thumbnail ({result.retrieval('thumbnail').numbers:,} numbers)" in page.text
    assert '"draws": 2' in page.text and result.versions["torch"] in page.text


def test_guides_are_dotted_floors_dashed_learned_solid(result):
    styles = line_styles({one.name: one.kind for one in result.retrievals})
    dashes = {name: style.dashes for name, style in styles.items()}
    assert dashes["flow"] == () and dashes["ceiling"] == ()
    assert max(dashes["thumbnail"]) < min(max(dashes["upsample"]), max(dashes["mean-frame"]))
    assert len(set(dashes.values())) == 5  # solid, dots and a dash for each of three floors


def test_strips_show_frames_that_open(page, strips):
    images = [a for a in page.all("img") if "hidden" not in a]
    rows = ["original", "ceiling", "oracle", "flow", "upsample"]
    assert [row.label for row in strips[0].rows] == rows
    assert len(images) == 3 * 5 * 3 and all(image["alt"] for image in images)
    data = base64.b64decode(images[0]["src"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (96, 64)
    assert [strip.note.split()[0] for strip in strips] == ["worst", "number", "best"]
    assert strips[0].rows[1].figures == strips[0].rows[2].figures  # the oracle is the ceiling


def test_wide_frames_shrink():
    picture = torch.zeros(3, 90, 640, dtype=torch.uint8)
    data = base64.b64decode(data_uri(picture).partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (320, 45)


@pytest.mark.slow
def test_one_clip_without_interval_or_partner_still_reads(result, strips):
    lone = attrs.evolve(
        result,
        run="",
        step=None,
        gain=attrs.evolve(result.gain, shuffled=None, specific=None, foreign=None),
        clips=result.clips[3:],
    )
    assert "no figure with shuffled memory" in Parsed(render(lone, Page(strips=strips[:1]))).text


def test_a_page_of_strips_alone(strips):
    page = Parsed(render(None, Page(strips=strips, title="A demo", notes=["what you see"])))
    assert "A demo" in page.text and "what you see" in page.text and not page.all("table")


@pytest.mark.slow
def test_it_is_written_whole_or_not_at_all(tmp_path, result, strips):
    path = write_report(result, Page(strips=strips), tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == render(result, Page(strips=strips))
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_report(result, Page(strips=strips), tmp_path / "file" / "report.html")
