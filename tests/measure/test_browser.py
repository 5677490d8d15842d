"""The report in a real browser: the slider draws the frame that it is at."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from longtake.core.measure.report import Page, render

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="needs Chromium on the path"),
]
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
  const note = document.createElement("pre");
  note.id = "seen";
  note.textContent = JSON.stringify({
    seen, wide: document.documentElement.scrollWidth, view: innerWidth,
    hidden: document.querySelector(".scrubs").hidden,
  });
  document.body.append(note);
});
</script>
"""


def dump(path, profile, *flags):
    """Give the page as Chromium has it after its scripts ran."""
    words = [
        BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000",
        f"--user-data-dir={profile}", *flags, "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.fixture(scope="module")
def text(result, strips, scrubs):
    return render(result, Page(strips=strips, scrubs=scrubs))


def test_the_script_runs_under_its_own_policy(tmp_path, text, scrubs):
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    seen = dump(tmp_path / "report.html", tmp_path / "profile")
    section = re.search(r'<section class="scrubs[^>]*>', seen)
    assert section and "hidden" not in section[0]
    assert seen.count("0.0 s</output>") == len(scrubs)


def test_the_slider_goes_through_time_and_a_phone_needs_no_sideways_scroll(tmp_path, text, scrubs):
    open_page = re.sub(r"<meta http-equiv[^>]*>", "", text)  # its policy would stop the test, too
    (tmp_path / "driven.html").write_text(open_page.replace("</body>", DRIVE + "</body>"))
    seen = dump(tmp_path / "driven.html", tmp_path / "profile", "--window-size=390,844")
    found = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', seen)[1])
    assert found["wide"] <= found["view"] and not found["hidden"]
    order = [(scrub, at) for scrub in scrubs for at in (0, 3, 4)]
    for (scrub, at), shown in zip(order, found["seen"], strict=True):
        assert shown["clock"] == f"{scrub.times[at]:.1f} s"
        assert shown["spoken"] == f"{scrub.times[at]:.1f} seconds"
        figures = [f"{panel.figures[at]:.2f}" if panel.figures else "" for panel in scrub.panels]
        assert shown["figures"] == figures
        for panel, pixel in zip(scrub.panels, shown["pixels"], strict=True):
            true = panel.frames[at, :, 20, 40].tolist()
            assert all(abs(a - b) < 40 for a, b in zip(true, pixel, strict=True)), panel.label


def test_without_scripts_the_strips_remain(tmp_path, text):
    blocked = text.replace("script-src 'sha256-", "script-src 'sha256-AAAA")
    (tmp_path / "blocked.html").write_text(blocked, encoding="utf-8")
    seen = dump(tmp_path / "blocked.html", tmp_path / "profile")
    section = re.search(r'<section class="scrubs[^>]*>', seen)
    assert section and "hidden" in section[0] and 'class="strip"' in seen
