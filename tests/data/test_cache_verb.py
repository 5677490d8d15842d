"""What `longtake cache` tells: counts, pace, what is gone, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from longtake.core import config
from longtake.core.cache import cache as cache_run
from longtake.core.cache.tasks import Outcome, TaskResult
from longtake.core.cli.cache import cache
from longtake.core.errors import LongtakeError, UserError
from longtake.core.video.write import write_video

from ..small import moving, small, write_clips


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_clips(tmp_path / "v", seeds=(1, 2))
    data = config.to_json(evolve(small(), cache=evolve(small().cache, area=32 * 48)))
    (tmp_path / "small.json").write_text(json.dumps(data))
    return tmp_path


def told(place: Path, capsys: pytest.CaptureFixture[str], *sets: str, **how: object) -> list[str]:
    """Standard output of the verb, by line."""
    given = {"workers": 1, "rank": None, "world": None, "as_json": False} | how
    cache(str(place / "small.json"), place / "v", place / "s", sets=list(sets), **given)
    return capsys.readouterr().out.splitlines()


def test_the_summary_counts_and_paces(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = told(place, capsys)[-1]
    assert "2 cached, 0 kept, 0 not used; 4 s of video in " in last and " clips/s)" in last
    assert told(place, capsys)[-1] == f"{place / 's'}: 0 cached, 2 kept, 0 not used"
    (place / "v" / "clip-1.txt").write_text("new")
    (place / "v" / "clip-2.mp4").unlink()
    lines = told(place, capsys, 'cache.rates=["4x4x1"]')
    assert "  clip-1.mp4: LR 4x4x1, captions updated" in lines
    assert "  no longer among the videos, kept: clip-2.mp4" in lines
    assert lines[-1].endswith("0 cached, 1 updated, 0 kept, 0 not used, 1 in the store only")


def test_a_share_says_which(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "(share 1 of 2): 1 cached" in told(place, capsys)[-1]
    data = json.loads("\n".join(told(place, capsys, rank=0, world=1, as_json=True)))
    assert (data["rank"], data["world"], data["cached"], data["kept"]) == (0, 1, 1, 1)
    assert data["video_seconds"] == pytest.approx(17 / 8) and data["wall_seconds"] > 0
    with pytest.raises(UserError, match="--world is no number"):
        told(place, capsys, rank=0)


def test_many_that_are_gone_are_told_shortly(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(7):
        write_video(place / "v" / f"x{number}.mp4", moving(number), 8)
    told(place, capsys)
    for path in (place / "v").glob("x*"):
        path.unlink()
    lines = told(place, capsys)
    assert sum("no longer among" in line for line in lines) == 5 and "  ... and 2 more" in lines
    lines = told(place, capsys, prune=True)
    assert "  no longer among the videos, removed: x0.mp4" in lines and "7 removed" in lines[-1]


def test_videos_that_were_lost_are_told_and_exit_1(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def perform(job: object, task: object) -> TaskResult:
        outcome = Outcome(source="a.mp4", status="lost", detail="a.mp4: was killed")
        return TaskResult(id=task.source.id, outcome=outcome)

    monkeypatch.setattr(cache_run, "perform", perform)
    with pytest.raises(LongtakeError, match="2 of 2 videos are not done") as caught:
        told(place, capsys)
    assert caught.value.exit_code == 1
    assert "  not done: a.mp4: was killed" in capsys.readouterr().out
