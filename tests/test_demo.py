"""The demo's story, on a small model and a short clip."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from attrs import evolve

from longtake.core import demo as module
from longtake.core.config import load_experiment
from longtake.core.data.store import Record, Store
from longtake.core.demo import (
    DemoResult,
    clip_training,
    demo_experiment,
    describe_change,
    learning_rate,
    loss_trend,
    run_demo,
)
from longtake.core.demo_continuation import can_go_on
from longtake.core.errors import UserError
from longtake.core.interfaces.spec import LoRA
from longtake.core.registry import registry
from longtake.core.train.checkpoint import checkpoints, load_run, read_run
from longtake.core.train.pretrain import pretrain
from longtake.core.video.builtin_clip import builtin_clip
from longtake.core.video.write import count_frames, write_video
from longtake.experiments.table1 import __main__ as table1

from .program import run
from .small import make_store, moving, small, small_finetune
from .test_export_verb import make_run


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    pretrain(small(steps=2), make_store(root, small()), root / "run")
    return root / "run"


def told(
    weights: Path, out: Path, steps: int, video: Path | None = None
) -> tuple[DemoResult, list[str]]:
    said: list[str] = []
    story = run_demo(video, out, weights, steps=steps, say=said.append, progress=lambda *_: None)
    return story, said + story.lines()


@pytest.mark.slow
def test_it_says_where_it_trained_on_the_clip(weights: Path, tmp_path: Path) -> None:
    video = tmp_path / "mine.mp4"
    write_video(video, moving(7, seconds=5), 8)
    story, lines = told(weights, tmp_path / "out", 2, video)
    text = "\n".join(lines)
    assert "never saw this clip" in text and "training steps on this very clip" in text
    assert "as memory" in text and "mean-frame" in text and "upsample" in text
    page = story.report.read_text(encoding="utf-8")
    assert "trained for 2 steps on this very clip" in page
    assert story.after is not None and story.to_json()["training_steps_on_the_clip"] == 2
    assert len(story.losses) == 2 == len(story.to_json()["losses"])
    assert "loss by training step on this clip" in page and page.count("<svg") > 1
    assert "training helped" in text or "so few steps did not help" in text


@pytest.mark.slow
def test_it_ends_with_a_continuation_where_weights_of_stage_two_ship(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was made stands beside what followed, and the take goes on by the program."""
    video, out = tmp_path / "mine.mp4", tmp_path / "out"
    write_video(video, moving(7, seconds=5), 8)
    make_run(tmp_path / "second", small_finetune())
    second, other = tmp_path / "second", registry().weights["tiny-wan-4x4x2"]
    shipped = {
        "tiny-wan-2x2x2": weights,
        "tiny-wan-4x4x2": other,
        "tiny-wan-2x2x2-finetune": second,
    }
    monkeypatch.setattr(type(registry()), "weights", property(lambda self: shipped))
    words = ("--video", video, "--steps", 0, "--out", out, "--json")
    code, said, err = run("demo", *words)
    assert code == 0, err
    story = json.loads(said)["continuation"]
    assert story["run"] == "small-finetune" and story["memory_tokens"] > 0
    assert story["seconds"] == 2.0 and story["past_seconds"] == 2.125
    assert count_frames(out / "take" / "new.mp4") == 16
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "made from the memory of the past" in page and "what followed in the clip" in page
    assert run("generate", "--out", out / "take", "--dry-run", *words[6:])[0] == 0
    assert can_go_on(Store.open(out / "store").records[0])


@pytest.mark.parametrize(("frames", "fps", "long"), [(32, 8.0, True), (31, 8.0, False)])
def test_a_clip_goes_on_where_a_past_is_left(frames: int, fps: float, long: bool) -> None:
    record = Record(
        id="a", source="a.mp4", fingerprint="", latents=9, height=4, width=6,
        frames=frames, fps=fps, captions=(), placement="",
    )  # fmt: skip
    assert can_go_on(record) is long


@pytest.mark.slow
def test_without_steps_nothing_is_trained(weights: Path, tmp_path: Path) -> None:
    video = tmp_path / "mine.mp4"
    write_video(video, moving(8, seconds=5), 8)
    story, lines = told(weights, tmp_path / "out", 0, video)
    assert story.after is None and not (tmp_path / "out" / "run").exists()
    assert story.continuation is None and not (tmp_path / "out" / "take").exists()
    assert "has never seen this clip" in story.report.read_text(encoding="utf-8")


def test_a_video_that_is_none_is_one_line(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="bad.mp4"):
        told(weights, tmp_path / "out", 0, tmp_path / "bad.mp4")


@pytest.mark.slow
def test_what_training_did_is_told_honestly(weights: Path, tmp_path: Path) -> None:
    video = tmp_path / "mine.mp4"
    write_video(video, moving(8, seconds=5), 8)
    before = told(weights, tmp_path / "out", 0, video)[0].before
    assert "(+0.00)" in describe_change(before, before, [2.0, 1.0])
    assert describe_change(before, before, [2.0, 1.0]).endswith(
        "so few steps did not help on this clip"
    )
    assert loss_trend([4.0, 3.0, 2.0, 1.0]) == "4.000 → 1.000"


def test_the_lesson_trains_what_is_measured(weights: Path, tmp_path: Path) -> None:
    experiment = demo_experiment(small(memory_dropout=0.5, ema=0.9, pure=0.1, precision="bf16"))
    store = Store.open(make_store(tmp_path, experiment, seeds=(3,)))
    train = clip_training(experiment, store, 7).train
    assert (train.steps, train.pure, train.memory_dropout, train.ema) == (7, 1.0, 0.0, 0.0)
    assert train.seconds[0] == train.seconds[1] <= 20.0
    assert train.precision == "auto", "bf16 of a GPU's run is slow on CPUs without it"
    assert learning_rate(
        evolve(train, trains="lora", adapter=LoRA(rank=4, alpha=12.0))
    ) == pytest.approx(1e-4)
    assert learning_rate(evolve(train, trains="all")) == 1e-5


@pytest.mark.slow
def test_the_weights_that_ship_tell_the_story(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHOWN_METRICS", 1)
    video = tmp_path / "mine.mp4"
    write_video(video, islice(builtin_clip(fps=8, height=144, width=256), 34), 8)
    story, lines = told(registry().weights["tiny-wan-2x2x2"], tmp_path / "out", 1, video)
    assert story.after is not None and len(story.losses) == 1 and 0 < story.losses[0] < 10
    assert story.report.exists() and any("this very clip" in line for line in lines)
    psnr = {one.name: one.unmasked.figures["psnr"].mean for one in story.before.retrievals}
    assert psnr[story.before.main] > psnr["mean-frame"] + 4, "what ships remembers this clip"
    assert read_run(tmp_path / "out" / "run")[0].train.precision == "auto"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(registry().weights) - {"tiny-ae"}))  # a codec
def test_weights_ship_and_load(name: str) -> None:
    folder = registry().weights[name]
    model = load_run(folder)
    assert model.experiment.name == name
    memory = sum(p.numel() for p in model.encoder.parameters())
    assert (memory > 0) == model.experiment.remembers
    assert all(torch.isfinite(p).all() for p in model.backbone.parameters())
    assert (folder / "training.json").exists() and not checkpoints(folder)


@pytest.mark.parametrize("name", sorted(set(registry().weights) - {"tiny-ae"}))
def test_what_ships_makes_takes_as_its_experiment_does(name: str) -> None:
    shipped, _ = read_run(registry().weights[name])
    assert shipped.generate == load_experiment(name)[1].generate
    assert shipped.compressors == load_experiment(name)[1].compressors


def test_it_flushes_denormals_before_any_thread_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny, seen = torch.full((1,), 1e-40), []

    def look(*_: object) -> None:
        seen.append(bool(tiny * 1))
        raise UserError("seen")

    for owner, name in ((module, "check_out_folder"), (table1, "_table_folder")):
        monkeypatch.setattr(owner, name, look)
    with pytest.raises(UserError, match="seen"):
        run_demo(None, tmp_path, tmp_path, steps=1, say=print, progress=lambda *_: None)
    assert table1.main(["--out", str(tmp_path)]) == 2
    assert seen == [False, False] and bool(tiny * 1)
