"""Weights that ship say how they were made: a command that trains the same again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import attrs
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from longtake.__main__ import app
from longtake.backbones.codecs.specs import Dct
from longtake.backbones.texts.specs import Bytes
from longtake.core import config
from longtake.core.cli import options
from longtake.core.experiment import Experiment
from longtake.core.train import checkpoint
from longtake.core.train import pretrain as training
from longtake.core.train.pretrain import pretrain
from longtake.core.train.trainer import TrainResult
from longtake.experiments.ship import command, halve, main
from longtake.plugins.compressors.specs import Conv

from .small import make_store, small

NAME = "tiny-wan-2x2x2"
STORE, RUN = Path("my stores/full"), Path("runs/full")


def shipped(**train: object) -> Experiment:
    found = config.load_experiment(NAME)[1]
    return attrs.evolve(found, train=attrs.evolve(found.train, **train))


def asked(monkeypatch: pytest.MonkeyPatch, line: str) -> tuple[Experiment, dict[str, object]]:
    """What `pretrain` is asked for by a command line."""
    seen: list[tuple[Experiment, dict[str, object]]] = []

    def take(experiment: Experiment, data: Path, out: Path, **how: object) -> TrainResult:
        seen.append((experiment, {"data": data, "out": out} | how))
        return TrainResult(run=out, step=1, loss=None, gain=None, stopped=False)

    monkeypatch.setattr(options, "find_run", Path)
    monkeypatch.setattr(checkpoint, "read_run", lambda path: (None, path))
    monkeypatch.setattr(training, "pretrain", take)
    program, *words = shlex.split(line)
    result = CliRunner().invoke(app, words)
    assert program == "longtake" and result.exit_code == 0, result.output
    return seen[0]


def other_parts(found: Experiment) -> Experiment:
    backbone = attrs.evolve(
        found.backbone, weights="null", codec=Dct(channels=16), text_encoder=Bytes(width=8)
    )
    slim = tuple(
        attrs.evolve(spec, channels=(4, 8, 8, 8)) if isinstance(spec, Conv) else spec
        for spec in found.compressors
    )
    fewer = found.retrievers[1:]
    return attrs.evolve(found, backbone=backbone, compressors=slim, retrievers=fewer)


CASES = {
    "as it ships": shipped(),
    "a few fields": shipped(steps=950, seed=2, precision="bf16", crop=(8, 16)),
    "other parts": other_parts(shipped(rate=1.5e-3)),
    "another backbone": attrs.evolve(
        shipped(), backbone=config.load_experiment("wan21-1.3b-2x2x2")[1].backbone
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("start", [None, Path("runs/crops")])
def test_the_command_asks_for_the_same_run(
    case: str, start: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = command(CASES[case], RUN, STORE, start)
    found, how = asked(monkeypatch, line)
    assert found == CASES[case]
    assert (how["data"], how["out"], how["start"]) == (STORE, RUN, start)


def test_only_what_differs_is_set() -> None:
    line = command(shipped(steps=950, precision="bf16"), RUN, Path("s"), None)
    assert line == (
        f"longtake pretrain {NAME} --data s --out runs/full "
        "--set train.steps=950 --set train.precision=bf16"
    )


@pytest.mark.slow
def test_every_part_ships_with_its_command(tmp_path: Path) -> None:
    store = make_store(tmp_path, small())
    first, last = tmp_path / "first", tmp_path / "last"
    pretrain(small(steps=1), store, first)
    pretrain(small(steps=1, seed=7), store, last, start=first / "checkpoint-1")
    words = (last, "--data", store, "--out", tmp_path / "weights", "--after", first)
    assert main([str(word) for word in words]) == 0
    folder = tmp_path / "weights" / "small"
    parts = json.loads((folder / "training.json").read_text(encoding="utf-8"))["parts"]
    told = [part["command"] for part in parts]
    assert told == [
        f"longtake pretrain small.json --data {store} --out {first}",
        f"longtake pretrain small.json --data {store} --out {last} --start {first}",
    ]
    assert [part["train"]["seed"] for part in parts] == [0, 7]


def test_what_ships_is_in_half_numbers_but_for_what_is_small(tmp_path: Path) -> None:
    tensors = {"big": torch.randn(40, 50), "small": torch.randn(8), "count": torch.arange(5000)}
    save_file(tensors, tmp_path / "in.safetensors", metadata={"of": "a run"})
    halve(tmp_path / "in.safetensors", tmp_path / "out.safetensors", small=8)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"of": "a run"}
        found = {name: file.get_tensor(name) for name in file.keys()}
    assert torch.equal(found["big"], tensors["big"].half())
    assert torch.equal(found["small"], tensors["small"]) and found["small"].dtype == torch.float32
    assert torch.equal(found["count"], tensors["count"])


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "run"), "--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ship: ") and "no such run" in said and len(said.splitlines()) == 1
