"""`python -m longtake.experiments.branches`: what an encoder's branches are worth to a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from attrs import evolve

from longtake.core.cache.cache import cache
from longtake.core.train.checkpoint import load_run
from longtake.core.train.pretrain import pretrain
from longtake.experiments import branches
from longtake.plugins.compressors.conv import ConvCompressor

from .small import RATE, moving, small, write_video


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("branches")
    (root / "videos").mkdir()
    for seed in range(2):
        write_video(root / "videos" / f"{seed}.mp4", moving(seed), 8)
    experiment = small(steps=2)
    rates, device = frozenset({RATE}), torch.device("cpu")
    cache(experiment, root / "videos", root / "store", rates=rates, pixels=True, device=device)
    pretrain(experiment, root / "store", root / "run")
    only_lr = evolve(small(steps=1), compressors=(evolve(experiment.compressors[0], hr=False),))
    pretrain(only_lr, root / "store", root / "lr")
    return root


def test_a_branch_is_off_inside_alone(place: Path) -> None:
    compressor = next(iter(load_run(place / "run").encoder.compressors))
    assert isinstance(compressor, ConvCompressor)
    hr, lr = compressor.hr, compressor.lr
    with branches.switched_off(compressor, "hr"):
        assert compressor.hr is None and compressor.lr is lr
    assert compressor.hr is hr


def test_losses_and_rises_are_written_and_belong_together(place: Path) -> None:
    words = [str(place / "run"), "--data", str(place / "store"), "--out", str(place / "out")]
    assert branches.main([*words, "--draws", "2"]) == 0
    found = json.loads((place / "out" / "branches.json").read_text())
    assert [clip["name"] for clip in found["clips"]] == ["0", "1"]
    for way in branches.WAYS[1:]:
        rises = [clip["losses"][way] - clip["losses"][branches.BOTH] for clip in found["clips"]]
        assert found["rise"][way]["mean"] == pytest.approx(sum(rises) / 2)
    assert found["loss"][branches.NO_HR]["mean"] != found["loss"][branches.BOTH]["mean"]
    assert "without HR" in (place / "out" / "branches.md").read_text()


@pytest.mark.parametrize(
    ("run", "more", "said"),
    [("lr", [], "lr and hr"), ("none", [], "no such run"), ("run", ["--draws", "0"], "--draws 0")],
)
def test_bad_input_is_one_line(
    run: str, more: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(place / run), "--data", str(place / "store"), "--out", str(place / "bad"), *more]
    assert branches.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (place / "bad").exists()
