"""Progress tells how far, how fast and how long, each once."""

from __future__ import annotations

import io
import sys

import pytest

from longtake.core.tools import progress
from longtake.core.tools.progress import progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_tell_pace_and_time_left(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("cache") as report:
        report(0, 4, "prompts")
        clock[0] += 1000  # what comes before the first clip is no part of its pace
        report(0, 4, "a.mp4")
        clock[0] += 30
        report(1, 4, "8 s of video, b.mp4")
        clock[0] += 1
        report(2, 4, "16 s of video, c.mp4")  # too soon after the last line
        clock[0] += 1
        report(4, 4, "32 s of video")
    assert capsys.readouterr().err.splitlines() == [
        "cache: 0/4 prompts",
        "cache: 0/4 a.mp4",
        "cache: 1/4, 30.0 s each, 90 s left 8 s of video, b.mp4",
        "cache: 4/4, 8.0 s each 32 s of video",
    ]


def test_many_a_second(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("measure") as report:
        report(5, 20, "")
        clock[0] += 2
        report(20, 20, "")
    assert capsys.readouterr().err.splitlines()[-1] == "measure: 20/20, 7.5/s"


def test_a_second_count_has_a_pace_of_its_own(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("cache") as report:
        report(0, 2, "looking for cuts")
        clock[0] += 40
        report(1, 2, "cuts of a.mp4")
        clock[0] += 40
        report(2, 2, "cuts of b.mp4")
        report(5, 9, "prompts")  # five of nine videos were done before
        clock[0] += 10
        report(5, 9, "a.mp4")
        clock[0] += 30
        report(6, 9, "b.mp4")
    assert capsys.readouterr().err.splitlines() == [
        "cache: 0/2 looking for cuts",
        "cache: 1/2, 40.0 s each, 40 s left cuts of a.mp4",
        "cache: 2/2, 40.0 s each cuts of b.mp4",
        "cache: 6/9, 30.0 s each, 90 s left b.mp4",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_second_count_on_a_terminal_is_not_over(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    with progress_bar("cache") as report:
        for done in (0, 1, 2):
            clock[0] += 40
            report(done, 2, "cuts")
        for done in (0, 1):
            clock[0] += 5
            report(done, 2, "a.mp4")
    shown = screen.getvalue().split("\r")[-1]
    assert "1/2" in shown and "5.0 s each" in shown
    assert "-:--:--" in shown, "the first count is over, but not this one"


def test_a_terminal_shows_the_pace_once(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    with progress_bar("cache") as report:
        report(0, 4, "a.mp4")
        clock[0] += 3
        report(1, 4, "8 s of video")
    shown = screen.getvalue().split("\r")[-1]
    assert shown.count("3.0 s each") == 1 and "8 s of video" in shown and "1/4" in shown
    assert "clips/s" not in shown
