"""The report in a real browser: the slider draws the frame that it is at, on phone and desktop."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from longtake.core.pages.report import Page, render

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="needs Chromium on the path"),
]
SCREENS = [(390, 844), (1280, 900)]  # a phone's, a desktop's
# A headless window is never narrower than 500 px, but a frame in it is: to the page that it holds
# its width is that of a screen.
FRAME = """<!doctype html><body style="margin:0">
<iframe style="border:0" width="{width}" height="{height}" srcdoc="{page}"></iframe>"""
DRIVE = """
<script>
addEventListener("load", async () => {
  await new Promise((done) => setTimeout(done, 500));
  const seen = [];
  for (const range of document.querySelectorAll("input")) for (const at of [0, 3, 4]) {
    range.focus();
    range.value = at;
    range.dispatchEvent(new Event("input", { bubbles: true }));
    const box = range.closest(".scrub");
    const pens = [...box.querySelectorAll("canvas")].map((c) => c.getContext("2d"));
    seen.push({
      at, clock: box.querySelector("output").textContent,
      spoken: range.getAttribute("aria-valuetext"),
      figures: [...box.querySelectorAll("figcaption span")].map((s) => s.textContent),
      pixels: pens.map((pen) => [...pen.getImageData(40, 20, 1, 1).data].slice(0, 3)),
    });
  }
  const root = document.documentElement, over = [];
  for (const one of document.body.querySelectorAll("*")) {
    const box = one.getBoundingClientRect(), held = one.parentElement.closest(".scroll, pre, svg");
    if (!held && (box.right > root.clientWidth + 1 || box.left < -1)) over.push(one.outerHTML);
  }
  const note = parent.document.createElement("pre");
  note.id = "seen";
  note.textContent = JSON.stringify({
    seen, over: over.map((text) => text.slice(0, 80)), screen: [innerWidth, innerHeight],
    view: root.clientWidth, wide: Math.max(root.scrollWidth, document.body.scrollWidth),
    narrow: matchMedia("(max-width: 40rem)").matches,
    hidden: document.querySelector(".scrubs").hidden,
  });
  parent.document.body.append(note);
});
</script>
"""


def dump(path, profile):
    """Give the page as Chromium has it after its scripts ran."""
    words = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--no-first-run", "--virtual-time-budget=8000", "--window-size=1400,1100",
        f"--user-data-dir={profile}", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.fixture(scope="module")
def text(result, strips, sliders):
    return render(result, Page(strips=strips, sliders=sliders))


def test_the_script_runs_under_its_own_policy(tmp_path, text, sliders):
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    seen = dump(tmp_path / "report.html", tmp_path / "profile")
    section = re.search(r'<section class="scrubs[^>]*>', seen)
    assert section and "hidden" not in section[0]
    assert seen.count("0.0 s</output>") == len(sliders)


def driven(folder, text, size):
    """Give what a script finds that moves every slider of the page on a screen of that size."""
    page = re.sub(r"<meta http-equiv[^>]*>", "", text)  # its policy would stop the test, too
    page = html.escape(page.replace("</body>", DRIVE + "</body>"))
    page = FRAME.format(width=size[0], height=size[1], page=page)
    (folder / "driven.html").write_text(page, encoding="utf-8")
    seen = dump(folder / "driven.html", folder / "profile")
    return json.loads(html.unescape(re.search(r'<pre id="seen">(.*?)</pre>', seen)[1]))


@pytest.mark.parametrize("size", SCREENS, ids=["phone", "desktop"])
def test_the_slider_goes_through_time_and_nothing_needs_sideways_scroll(
    tmp_path, text, sliders, size
):
    found = driven(tmp_path, text, size)
    assert tuple(found["screen"]) == size and found["view"] == size[0], "the page has that width"
    assert found["narrow"] == (size[0] < 640)
    assert found["wide"] == size[0] and found["over"] == [] and not found["hidden"]
    order = [(slider, at) for slider in sliders for at in (0, 3, 4)]
    for (slider, at), shown in zip(order, found["seen"], strict=True):
        assert shown["clock"] == f"{slider.times[at]:.1f} s"
        assert shown["spoken"] == f"{slider.times[at]:.1f} seconds"
        figures = [f"{panel.figures[at]:.2f}" if panel.figures else "" for panel in slider.panels]
        assert shown["figures"] == figures
        for panel, pixel in zip(slider.panels, shown["pixels"], strict=True):
            true = panel.frames[at, :, 20, 40].tolist()
            assert all(abs(a - b) < 40 for a, b in zip(true, pixel, strict=True)), panel.label


def test_what_sticks_out_is_seen(tmp_path, text):
    """Else the test above could not fail."""
    wide = '<div id="wide" style="width: 500px; height: 1px"></div>'
    found = driven(tmp_path, text.replace("</body>", wide + "</body>"), SCREENS[0])
    assert found["wide"] > 390 and len(found["over"]) == 1 and 'id="wide"' in found["over"][0]


def test_without_scripts_the_strips_remain(tmp_path, text):
    blocked = text.replace("script-src 'sha256-", "script-src 'sha256-AAAA")
    (tmp_path / "blocked.html").write_text(blocked, encoding="utf-8")
    seen = dump(tmp_path / "blocked.html", tmp_path / "profile")
    section = re.search(r'<section class="scrubs[^>]*>', seen)
    assert section and "hidden" in section[0] and 'class="strip"' in seen
