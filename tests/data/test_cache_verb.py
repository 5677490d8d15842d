"""What `longtake cache` tells: counts, pace, what is gone, and the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attrs import evolve

from longtake.core import config
from longtake.core.cache import cache as cache_run
from longtake.core.cache import tasks
from longtake.core.cache.tasks import Outcome, TaskResult
from longtake.core.cli.cache import cache
from longtake.core.errors import LongtakeError, UserError
from longtake.core.video import decode
from longtake.core.video.write import write_video

from ..small import moving, small, write_clips
from .odd_files import cut, shared_case, video


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_clips(tmp_path / "v", seeds=(1, 2))
    data = config.to_json(evolve(small(), cache=evolve(small().cache, area=32 * 48)))
    (tmp_path / "small.json").write_text(json.dumps(data))
    return tmp_path


def told(place: Path, capsys: pytest.CaptureFixture[str], *sets: str, **how: object) -> list[str]:
    """Standard output of the verb, by line."""
    given = {"workers": 1, "rank": None, "world": None, "as_json": False} | how
    out, videos = place / "s", place / "v"
    cache(str(place / "small.json"), out, videos=videos, sets=list(sets), **given)
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


def test_captions_are_counted_with_their_place(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (place / "v").glob("*.txt"):
        path.unlink()
    assert told(place, capsys)[-2] == "captions: 0 of 2, from nowhere: videos go by their names"
    (place / "v" / "clip-1.caption").write_text("a cat")
    (place / "v" / "clip-2.tags").write_text("a cat")
    lines = told(place, capsys)
    assert lines[-2] == "captions: 1 of 2, from .caption files; the others go by their names"
    assert "files beside videos: .tags (1)" in lines[-3]
    (place / "v" / "captions.json").write_text('{"clip-1.mp4": "x", "clip-2.mp4": ["y"]}')
    data = json.loads("\n".join(told(place, capsys, as_json=True)))
    assert data["captions"] == {"given": 2, "videos": 2, "from": ["captions.json"]}
    assert data["notes"] == [] and data["updated"] == 2


def test_a_truncated_video_is_cached_and_said(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut(video(place / "v" / "odd.mkv", 40, codec="ffv1"), 0.5)
    lines = told(place, capsys)
    [line] = [line for line in lines if "odd.mkv" in line and "truncated" in line]
    assert line == "  odd.mkv: truncated: 2.2 of 5.0 s could be decoded"
    (place / "v" / "odd.mkv").rename(place / "v" / "odd2.mkv")
    data = json.loads("\n".join(told(place, capsys, as_json=True)))
    by_name = {entry["source"]: entry["note"] for entry in data["videos"]}
    assert by_name["odd2.mkv"] == line.removeprefix("  odd.mkv: ") and by_name["clip-1.mp4"] == ""


@pytest.mark.parametrize("name", ["half.mkv", "half2.mp4"])
def test_the_shared_truncated_videos(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / "v" / name).write_bytes(shared_case(f"video/trunc/{name}").read_bytes())
    assert any(f"{name}: truncated: 4." in line and " of 12.0 s" in line
               for line in told(place, capsys))  # fmt: skip


def test_the_shared_cue_of_no_length(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("zero.mp4", "zero.srt"):
        (place / "v" / name).write_bytes(shared_case(f"video/srt/{name}").read_bytes())
    lines = told(place, capsys)
    assert "  zero.srt, line 6: a cue of no length, passed over" in lines
    assert lines[-1].split(": ")[1].startswith("3 cached, 0 kept, 0 not used")


@pytest.mark.parametrize(
    "error", [ValueError("31 is no Type"), RuntimeError("odd\nodd"), KeyError("x")]
)
@pytest.mark.parametrize("where", ["encode_file", "fingerprint"])
def test_whatever_a_file_raises_the_rest_goes_on(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    error: Exception, where: str,
) -> None:  # fmt: skip
    real = getattr(tasks, where)

    def raises(path: Path, *args: object, **more: object) -> object:
        if path.name == "clip-1.mp4":
            raise error
        return real(path, *args, **more)

    monkeypatch.setattr(tasks, where, raises)
    lines = told(place, capsys)
    [bad] = [line for line in lines if "not used: clip-1.mp4" in line]
    assert f"cannot be used ({type(error).__name__}: " in bad
    assert "1 cached, 0 kept, 1 not used" in lines[-1]
    monkeypatch.undo()
    assert "1 cached, 1 kept, 0 not used" in told(place, capsys)[-1]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_a_video_for_which_memory_is_short_is_tried_again(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:  # fmt: skip
    real = decode.BestEffort.__call__

    def short(self: decode.BestEffort, pts: int | None, dts: int | None) -> int | None:
        if pts is not None and pts > 5:
            raise error
        return real(self, pts, dts)

    video(place / "v" / "clip-0.mkv", 13, codec="ffv1")
    with monkeypatch.context() as patch:
        patch.setattr(decode.BestEffort, "__call__", short)
        with pytest.raises(UserError, match="none of the 3 .* memory ran short .* run again"):
            told(place, capsys, "cache.min_seconds=0.1")
    assert not (place / "s").exists()
    assert "3 cached" in told(place, capsys, "cache.min_seconds=0.1")[-1]


@pytest.mark.parametrize("made_before", [False, True])
def test_a_cache_that_fails_leaves_no_folder_behind(
    place: Path, capsys: pytest.CaptureFixture[str], made_before: bool
) -> None:
    out = place / "deep" / "er" / "s"
    if made_before:
        (place / "deep").mkdir()
    for path in (place / "v").glob("*.mp4"):
        path.write_bytes(bytes(5000))
    with pytest.raises(UserError, match="none of the 2 videos"):
        cache(str(place / "small.json"), out, videos=place / "v", sets=[])
    assert (place / "deep").exists() == made_before and not (place / "deep" / "er").exists()


def test_a_cache_that_fails_keeps_what_was_there(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(place, capsys)
    before = sorted(path.name for path in (place / "s").rglob("*"))
    for path in (place / "v").glob("*.mp4"):
        path.write_bytes(bytes(5000))
    with pytest.raises(UserError, match="none of the 2 videos"):
        told(place, capsys)
    assert sorted(path.name for path in (place / "s").rglob("*")) == before
    (place / "t").mkdir()
    (place / "t" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="other files in it"):
        cache(str(place / "small.json"), place / "t", videos=place / "v", sets=[])
    assert [path.name for path in (place / "t").iterdir()] == ["mine.txt"]


def test_captions_that_the_text_encoder_cuts_are_counted(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "v" / "clip-1.txt").write_text("a cat")
    (place / "v" / "clip-2.txt").write_text("a very long one")
    lines = told(place, capsys)
    assert "  1 video with a longer caption than the text encoder reads: its end is cut" in lines
    (place / "v" / "clip-1.txt").write_text("a longer one still")
    assert json.loads("\n".join(told(place, capsys, as_json=True)))["cut_captions"] == 1
    assert not any("longer caption" in line for line in told(place, capsys))
