"""The program as a user meets it: verbs end to end, and bad input in one line with exit code 2."""

from __future__ import annotations

import errno
import json
import re
import sys
from pathlib import Path

import pytest

from longtake.core.video.write import write_video

from .program import run
from .small import moving, write_clips

SPEC = """
from tests.small import small
EXPERIMENT = small(steps=3, save_every=2)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos, an experiment file, a store and a run, made by the program."""
    root = tmp_path_factory.mktemp("cli")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    write_clips(root / "videos")
    (root / "videos" / "clip-1.txt").write_text("a square walks right")
    (root / "mine.py").write_text(SPEC)
    experiment = str(root / "mine.py")
    assert run("cache", experiment, "--videos", root / "videos", "--out", root / "store")[0] == 0
    assert run("pretrain", experiment, "--data", root / "store", "--out", root / "run")[0] == 0
    return root


@pytest.mark.slow
def test_every_verb_has_help_with_an_example() -> None:
    shown = ("demo", "list", "show", "cache", "pretrain", "retrieve", "measure", "probe", "bench")
    for verb in (*shown, "export", "check", "finetune", "generate"):
        code, out, _ = run(verb, "--help")
        assert code == 0 and f"longtake {verb}" in out, verb


def test_verbs_that_do_not_exist_yet_are_refused() -> None:
    for verb in ("judge", "plan"):
        assert run(verb)[0] == 2


def test_finetune_goes_on_from_a_run_of_stage_one(place: Path, tmp_path: Path) -> None:
    words = ["finetune", place / "mine.py", "--data", place / "store", "--out", tmp_path / "two"]
    words += ["--set", "finetune.past=[0.5, 1.5]", "--set", "finetune.target=[0.5, 1.0]"]
    code, _, said = run(*words)
    assert code == 2 and "--start RUN" in said and not (tmp_path / "two").exists()
    words += ["--start", place / "run", "--resume", "latest", "--json"]
    for _ in range(2):  # the second time it is over
        code, told, said = run(*words)
        assert code == 0 and json.loads(told)["step"] == 3
        assert "small is Stage I: its Stage II, small-finetune, is trained" in said
    spec = json.loads((tmp_path / "two" / "spec.json").read_text())
    assert spec["start"] == "run/checkpoint-3"
    assert spec["experiment"]["finetune"]["past"] == [0.5, 1.5]


def test_list_names_every_kind() -> None:
    code, out, _ = run("list", "--json")
    assert code == 0
    for name in ("conv", "tiny-wan", "dct", "bytes", "noise", "flow", "psnr", "tiny-wan-2x2x2"):
        assert f'"{name}"' in out


def test_show_gives_the_resolved_spec_with_changes() -> None:
    code, out, _ = run("show", "tiny-wan-2x2x2", "--set", "compressor.rate=4x4x2", "--json")
    assert code == 0 and '"4x4x2"' in out


def test_show_lists_what_followed_another_backbone_and_where_values_are_from() -> None:
    words = ("show", "tiny-wan-2x2x2", "--set", "backbone=wan22-5b", "--set", "train.steps=9")
    code, out, said = run(*words, "--fields")
    assert code == 0 and said == ""
    assert "backbone wan22-5b: 32 values follow its recipe" in out
    assert re.search(r"train\.weigh +2\.0 +0\.0 +follows", out)
    assert re.search(r"train\.steps +9 +--set +optimizer steps", out)
    assert re.search(r"train\.batch +32 +recipe ", out)
    told = json.loads(run(*words, "--json")[1])
    assert {"path": "train.rate", "was": 3e-05, "is": 0.0001} in told["swap"]["follow"]
    sources = {row["path"]: row["from"] for row in told["fields"] if "value" in row}
    assert sources["train.clip"] == "default" and sources["compressors[0].rate"] == "experiment"
    assert "from" not in json.dumps(told["experiment"]), "the spec holds values only"
    assert "swap" not in json.loads(run("show", "tiny-wan-2x2x2", "--json")[1])


def test_what_followed_another_backbone_is_said_on_stderr(place: Path, tmp_path: Path) -> None:
    words = ("cache", "wan22-5b-2x2x2", "--set", "backbone=tiny-wan", "--out", tmp_path / "store")
    words = (*words, "--set", "cache.min_seconds=0.1")
    code, _, said = run(*words, "--videos", tmp_path / "none")
    assert code == 2 and said.startswith("longtake: --videos") and said.count("\n") == 1
    code, _, said = run(*words, "--videos", place / "videos")
    assert code == 0 and said.startswith("backbone tiny-wan: 32 values follow its recipe (`longt")


def test_a_run_is_measured_on_its_own_backbone(place: Path) -> None:
    words = ("measure", place / "run", "--data", place / "store", "--set", "backbone=wan22-5b")
    code, _, said = run(*words)
    assert code == 2 and "a run is measured on the backbone that it was trained on" in said


def test_the_store_is_resumed_and_takes_only_what_is_new(place: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in (place / "store" / "clips").iterdir()}
    write_video(place / "videos" / "late.mp4", moving(9), 8)
    code, out, _ = run(
        "cache", place / "mine.py", "--videos", place / "videos", "--out", place / "store", "--json"
    )
    told = json.loads(out)
    assert code == 0 and (told["cached"], told["kept"], told["bad"]) == (1, 3, 0)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_changed_caption_is_updated(place: Path) -> None:
    (place / "videos" / "clip-1.txt").write_text("a square walks on")
    words = ("cache", place / "mine.py", "--videos", place / "videos", "--out", place / "store")
    assert json.loads(run(*words, "--json")[1])["updated"] == 1
    assert json.loads(run(*words, "--json")[1])["updated"] == 0


def test_retrieve_writes_frames_and_a_strip(place: Path) -> None:
    out = place / "frames"
    code, told, _ = run(
        "retrieve", place / "run", place / "videos" / "clip-2.mp4", "--at", "0,1.5", "--out", out
    )
    assert code == 0 and "tokens compressed to" in told
    assert len(list(out.glob("*-retrieved.png"))) == 2 and (out / "strip.png").exists()


@pytest.mark.slow
def test_measure_writes_a_report_and_json(place: Path) -> None:
    code, out, _ = run("measure", place / "run", "--data", place / "store", "--json")
    assert code == 0, out
    assert json.loads(out)
    page = (place / "run" / "measure" / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_bench_runs_to_its_end_on_an_experiment_of_ones_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longtake.core import bench
    from longtake.core import bench as bench_loader

    monkeypatch.setattr(bench, "REPEATS", 1)
    monkeypatch.setattr(bench_loader, "REPEATS", 1)
    words = ("bench", place / "mine.py", "--data", place / "store", "--out", place / "bench.json")
    code, out, err = run(*words, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told == json.loads((place / "bench.json").read_text(encoding="utf-8"))
    assert told["experiment"] == "small" and told["startup"]["ratio"] > 0
    assert list(told["stages"]) == ["pretrain", "cache", "retrieve", "measure"]
    for stage in told["stages"].values():
        assert stage["seconds"] > 0 and stage["floor_seconds"] > 0 and stage["gflop"] > 0
    assert (
        told["stages"]["cache"]["decode_seconds"] > 0 == told["stages"]["measure"]["decode_seconds"]
    )
    figures = told["loader"]
    assert figures["ratio"] == pytest.approx(figures["step_seconds"] / figures["load_seconds"])
    assert figures["store"] == str(place / "store") and figures["batch"] == 2


BAD_VIDEOS = {
    "empty.mp4": b"",
    "words.mp4": b"this is no video at all\n" * 50,
    "cut.mp4": None,
}


def test_bad_videos_are_listed_and_do_not_stop_the_rest(tmp_path: Path) -> None:
    write_clips(tmp_path / "v", seeds=(1,))
    good = (tmp_path / "v" / "clip-1.mp4").read_bytes()
    for name, data in BAD_VIDEOS.items():
        (tmp_path / "v" / name).write_bytes(good[: len(good) // 3] if data is None else data)
    write_video(tmp_path / "v" / "short.mp4", moving(5, seconds=0.5), 8)
    (tmp_path / "mine.py").write_text(SPEC)
    words = ("cache", tmp_path / "mine.py", "--videos", tmp_path / "v", "--out", tmp_path / "s")
    code, out, _ = run(*words, "--json")
    told = json.loads(out)
    assert code == 0 and told["cached"] == 1 and told["bad"] == 4
    reasons = {row["source"]: row["detail"] for row in told["videos"] if row["status"] == "bad"}
    assert set(reasons) == {*BAD_VIDEOS, "short.mp4"}
    assert all(reason and "\n" not in reason for reason in reasons.values())
    assert "too short" in reasons["short.mp4"]


def test_no_usable_video_is_exit_2(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "empty.mp4").write_bytes(b"")
    (tmp_path / "mine.py").write_text(SPEC)
    words = ("cache", tmp_path / "mine.py", "--videos", tmp_path / "v", "--out", tmp_path / "s")
    code, _, err = run(*words)
    assert code == 2 and "none of the 1 videos" in err


CASES = [
    (("show", "tiny-wan-2x2x3"), "tiny-wan-2x2x2"),
    (("show", "nowhere.py"), "nowhere.py"),
    (("show", "{root}/mine.py", "--set", "train.stepz=3"), "did you mean steps"),
    (("show", "{root}/mine.py", "--set", "compressor.rate=5x5x5"), "1, 2, 4 or 8"),
    (("show", "{root}/mine.py", "--set", "backbone=tiny-wam"), "tiny-wan"),
    (("cache", "{root}/mine.py", "--videos", "{root}/none", "--out", "{root}/s2"), "no such"),
    (
        ("cache", "{root}/mine.py", "--videos", "{root}/videos", "--out", "{root}/run"),
        "other files",
    ),
    (("pretrain", "{root}/mine.py", "--data", "{root}/none", "--out", "{root}/r2"), "latent store"),
    (("pretrain", "{root}/mine.py", "--data", "{root}/store", "--out", "{root}/run"), "--resume"),
    (
        ("pretrain", "{root}/mine.py", "--data", "{root}/store", "--out", "{root}/r2")
        + ("--resume", "soon"),
        "latest",
    ),
    (
        ("finetune", "{root}/mine.py", "--data", "{root}/store", "--out", "{root}/r2")
        + ("--start", "{root}/videos"),
        "run (make one with `longtake pretrain`)",
    ),
    (
        ("finetune", "tiny-plain", "--data", "{root}/store", "--out", "{root}/r2"),
        "tiny-plain is Stage 0",
    ),
    (
        ("pretrain", "tiny-wan-2x2x2-finetune", "--data", "{root}/store", "--out", "{root}/r2"),
        "train it with `longtake finetune`",
    ),
    (("bench", "--out", "{root}"), "is a folder"),
    (("bench", "--out", "{root}/run/spec.json"), "belongs to a run"),
    (("probe", "{root}/run", "--data", "{root}/store", "--out", "{root}/mine.py"), "no probe"),
    (
        (
            "retrieve",
            "{root}/run",
            "{root}/videos/clip-1.mp4",
            "--at",
            "1",
            "--out",
            "{root}/mine.py",
        ),
        "mine.py is a file; a folder is wanted",
    ),
    (("demo", "--out", "{root}/mine.py/demo"), "mine.py is a file"),
    (("show", "{root}/mine.py", "--picture", "{root}/mine.py/x.png"), "mine.py is a file"),
    (
        ("cache", "{root}/mine.py", "--videos", "{root}/videos", "--out", "{root}/mine.py/s"),
        "mine.py",
    ),
    (
        ("pretrain", "{root}/mine.py", "--data", "{root}/store", "--out", "{root}/mine.py/r"),
        "mine.py is a file",
    ),
    (("bench", "tiny-wan-2x2x3"), "tiny-wan-2x2x2"),
    (("retrieve", "{root}/none", "{root}/videos/clip-1.mp4", "--at", "1"), "no such run"),
    (("retrieve", "{root}/run", "{root}/videos/clip-1.mp4", "--at", "soon"), "seconds"),
    (("retrieve", "{root}/run", "{root}/videos/clip-1.mp4", "--at", "99"), "has 2"),
    (("retrieve", "{root}/run", "{root}/videos/none.mp4", "--at", "1"), "none.mp4"),
    (("measure", "{root}/run", "--data", "{root}/run"), "store"),
    (("demo", "--video", "{root}/none.mp4"), "no such file"),
]


@pytest.mark.parametrize("words,said", CASES)
def test_bad_input_is_one_clear_line(place: Path, words: tuple[str, ...], said: str) -> None:
    code, out, err = run(*(word.format(root=place) for word in words))
    lines = [line for line in err.splitlines() if line.startswith("longtake: ")]
    assert code == 2 and said in err, (code, err)
    assert len(lines) == 1 and "Traceback" not in err + out
    assert not (place / "r2").exists() and not (place / "s2").exists()


def test_what_may_not_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def shut(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_dir", shut)
    code, out, err = run("measure", "runs/theirs", "--data", "store")
    assert (code, out, err) == (2, "", "longtake: runs/theirs: Permission denied\n")


def test_all_faults_of_a_spec_come_at_once(place: Path) -> None:
    sets = ("train.stepz=3", "train.batch=0", "compressor.rate=2x2", "cache.area=small")
    words = [w for s in sets for w in ("--set", s)]
    code, _, err = run("show", place / "mine.py", *words)
    assert code == 2
    for part in ("stepz", "batch", "rate", "area"):
        assert part in err, part


def test_a_half_written_store_is_refused_or_healed(place: Path, tmp_path: Path) -> None:
    words = ("cache", place / "mine.py", "--videos", place / "videos", "--out", tmp_path / "s")
    assert run(*words)[0] == 0
    clip = sorted((tmp_path / "s" / "clips").iterdir())[0]
    clip.write_bytes(clip.read_bytes()[:100])
    code, _, err = run(
        "pretrain", place / "mine.py", "--data", tmp_path / "s", "--out", tmp_path / "r",
        "--set", "train.steps=20", "--set", "train.gain_every=100",
    )  # fmt: skip
    assert code == 2 and clip.name in err and "Traceback" not in err
    clip.unlink()
    assert json.loads(run(*words, "--json")[1])["cached"] == 1


def test_a_full_disk_is_one_line_and_leaves_nothing(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    import safetensors.torch

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    words = ("cache", place / "mine.py", "--videos", place / "videos", "--out", tmp_path / "s")
    code, _, err = run(*words)
    assert code == 2 and "No space left" in err
    assert not [
        p for p in tmp_path.rglob("*") if p.name.endswith(".part") or p.suffix == ".safetensors"
    ]


@pytest.mark.parametrize(
    "words",
    [
        ("retrieve", "run", "x.mp4", "--at", "1", "--seed", "-1"),
        ("retrieve", "run", "x.mp4", "--at", "1", "--seed", str(2**63)),
        ("pretrain", "x", "--data", "s", "--out", "r", "--seed", "-1"),
        ("pretrain", "x", "--data", "s", "--out", "r", "--seed", str(2**62 + 1)),
        ("retrieve", "--nonsense"),
    ],
)
def test_misuse_is_exit_2_with_the_usage(words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert code == 2 and "Usage: " in err and "Traceback" not in err + out


def test_ctrl_c_is_one_line_and_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from longtake.core import show as describe

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(describe, "list_plugins", stop)
    assert run("list") == (130, "", "longtake: stopped\n")


def test_training_that_was_stopped_is_saved_and_130(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal
    from collections.abc import Callable, Iterator
    from contextlib import contextmanager

    from longtake.core.cli import training

    @contextmanager
    def interrupted(_: str) -> Iterator[Callable[[int, int, str], None]]:
        yield lambda done, total, note: signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(training, "progress_bar", interrupted)
    words = ("pretrain", place / "mine.py", "--data", place / "store", "--out", tmp_path / "r")
    code, out, _ = run(*words)
    assert code == 130 and "stopped and saved at step 1" in out
    assert (tmp_path / "r" / "checkpoint-1").is_dir()


def test_retrieve_takes_a_moment_once_and_the_caption_of_the_store(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longtake.backbones.texts.bytes import ByteEncoder

    asked: list[str] = []
    real = ByteEncoder.encode
    monkeypatch.setattr(
        ByteEncoder, "encode", lambda self, prompts: (asked.extend(prompts), real(self, prompts))[1]
    )
    words = ("retrieve", place / "run", place / "videos" / "clip-1.mp4", "--out", tmp_path)
    assert run(*words, "--at", "1.0,1.001,1.0001,1")[0] == 0
    names = {path.name for path in tmp_path.glob("*-retrieved.png")}
    assert (place / "videos" / "clip-1.txt").read_text() in asked
    assert names == {"0001.000s-retrieved.png", "0001.001s-retrieved.png"}
