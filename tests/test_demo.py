"""The demo's story, on a small model and a short clip."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from longtake.core.data.video import write_video
from longtake.core.demo.story import demo_experiment, tell
from longtake.core.errors import UserError
from longtake.core.registry import registry
from longtake.core.train.checkpoint import checkpoints, load_run
from longtake.core.train.pretrain import pretrain

from .small import make_store, moving, small


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    pretrain(small(steps=2), make_store(root, small()), root / "run")
    return root / "run"


def told(
    weights: Path, out: Path, steps: int, video: Path | None = None
) -> tuple[object, list[str]]:
    said: list[str] = []
    story = tell(video, out, weights, steps=steps, say=said.append, progress=lambda *_: None)
    return story, said + story.lines()


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


def test_without_steps_nothing_is_trained(weights: Path, tmp_path: Path) -> None:
    video = tmp_path / "mine.mp4"
    write_video(video, moving(8, seconds=5), 8)
    story, lines = told(weights, tmp_path / "out", 0, video)
    assert story.after is None and not (tmp_path / "out" / "run").exists()
    assert "has never seen this clip" in story.report.read_text(encoding="utf-8")


def test_a_video_that_is_none_is_one_line(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(UserError, match="bad.mp4"):
        told(weights, tmp_path / "out", 0, tmp_path / "bad.mp4")


@pytest.mark.slow
def test_weights_ship_and_load() -> None:
    folder = registry().weights["tiny-wan-2x2x2"]
    model = load_run(folder)
    assert sum(p.numel() for p in model.encoder.parameters()) > 0
    assert (folder / "training.json").exists() and not checkpoints(folder)
    assert evolve(demo_experiment(model.experiment), name="") is not None
