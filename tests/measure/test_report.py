"""The report: one whole page that asks for nothing, runs nothing, and shows what was measured."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import attrs
import pytest
import torch
from PIL import Image

from longtake.core.errors import UserError
from longtake.core.measure.charts import series_of
from longtake.core.measure.report import data_uri, render, write_report

from .conftest import HOSTILE

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
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
def text(result, strips):
    return render(result, strips, notes=["one note", "<b>two</b>"])


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_it_is_balanced_and_made_for_phones_too(page):
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all(
        "meta"
    )
    assert len(page.all("table")) == 4 and len(page.all("h1")) == 1
    scrolled = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(scrolled) == 4 + 3  # every table and strip scrolls inside its own box


def test_nothing_comes_from_outside_and_nothing_runs(page, text):
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "base"}
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/jpeg;base64,", "#"))
        assert not any(name.startswith("on") for name in attributes)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style


def test_hostile_words_stay_words(page, text):
    assert HOSTILE in page.text and "<script" not in text and "<b>two" not in text
    assert "<b>two</b>" in page.text


def test_ids_are_unique_and_references_hold(page):
    ids = [a["id"] for _, a in page.tags if "id" in a]
    used = {a["href"][1:] for a in page.all("use")}
    used |= {
        m for _, a in page.tags for m in re.findall(r"url\(#([^)]+)\)", a.get("clip-path", ""))
    }
    assert len(ids) == len(set(ids)) and used and used <= set(ids)


def test_colours_follow_the_page(text):
    charts = re.findall(r"<svg role.*?</svg>", text, flags=re.DOTALL)
    assert len(charts) == 2 and all("var(--muted)" in chart for chart in charts)
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
    dashes = {s.retrieval.name: s.dashes for s in series_of(result)}
    assert dashes["flow"] == () and dashes["ceiling"] == ()
    assert max(dashes["thumbnail"]) < min(max(dashes["upsample"]), max(dashes["mean-frame"]))
    assert len(set(dashes.values())) == 5  # solid, dots and a dash for each of three floors


def test_strips_show_frames_that_open(page, strips):
    images = page.all("img")
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


def test_one_clip_without_interval_or_partner_still_reads(result, strips):
    lone = attrs.evolve(
        result,
        run="",
        step=None,
        gain=attrs.evolve(result.gain, shuffled=None, specific=None, foreign=None),
        clips=result.clips[3:],
    )
    assert "no figure with shuffled memory" in Page(render(lone, strips[:1])).text


def test_a_page_of_strips_alone(strips):
    page = Page(render(None, strips, title="A demo", notes=["what you see"]))
    assert "A demo" in page.text and "what you see" in page.text and not page.all("table")


def test_it_is_written_whole_or_not_at_all(tmp_path, result, strips):
    path = write_report(result, strips, tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == render(result, strips)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_report(result, strips, tmp_path / "file" / "report.html")
