"""`python -m longtake.experiments.joins`: frames around a take's first join, and to its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from longtake.experiments import joins

from ..small import moving, write_video


@pytest.fixture
def take(tmp_path: Path) -> Path:
    write_video(tmp_path / "take.mp4", moving(1, seconds=3.0), 8)
    write_report(tmp_path, [{"frame": 9, "seconds": 1.125}, {"frame": 17, "seconds": 2.125}])
    return tmp_path


def write_report(take: Path, found: list[dict[str, float]]) -> None:
    (take / "report.json").write_text(json.dumps({"fps": 8.0, "joins": found}))


def test_it_shows_both_sides_of_the_first_join_and_goes_to_the_end(take: Path) -> None:
    near, made = joins.strips(take)
    assert near.times == tuple(k / 8 for k in (6, 7, 8, 9, 10, 11))
    assert made.times[0] == 9 / 8 and made.times[-1] == 23 / 8
    assert "1.1, 2.1 s" in made.note
    frame = near.rows[0].frames[3]
    assert (frame == made.rows[0].frames[0]).all(), "the first made frame is in both"
    assert (frame != near.rows[0].frames[0]).any()
    assert joins.main([str(take), "--out", str(take / "joins.png")]) == 0
    assert Image.open(take / "joins.png").width > 32


def test_what_cannot_be_shown_is_one_line(take: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place, report, said in (
        (take / "none", None, "report of a take"),
        (take, [], "one segment"),
        (take, [{"frame": 9, "seconds": 1.0}], "ends in"),
    ):
        if report is not None:
            write_report(take, report)
        out = take / ("x.gif" if said == "ends in" else "x.png")
        assert joins.main([str(place), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not out.exists()
