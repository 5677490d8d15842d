"""Many processes train as one: the loss, the weights, and every way to end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch

from longtake.core.data.windows import Batch, WindowBatches
from longtake.core.errors import LongtakeError
from longtake.core.experiment import Experiment, FinetuneSpec
from longtake.core.tools.files import read_json_lines
from longtake.core.train import trainer as step
from longtake.core.train.checkpoint import checkpoints, load_run
from longtake.core.train.finetune import finetune
from longtake.core.train.loss import StageOne
from longtake.core.train.pretrain import pretrain
from longtake.core.values.draws import drops_memory

from ..program import FSDP, ROOT, SECONDS, TWO, Forked, pair, python_path
from ..small import small, small_finetune
from .launched import spoil
from .runs import batches_of, stage_of, tensors


def share(experiment: Experiment, store: Path, rank: int = 0, world: int = 1) -> Batch:
    whole = batches_of(experiment, store)
    return WindowBatches(whole.store, whole.windows, whole.needs, 8, rank, world)[3]


def gradients(experiment: Experiment, store: Path, shares: list[Batch]) -> dict[str, torch.Tensor]:
    stage = stage_of(experiment, store)
    losses = [stage(batch, 3) / len(shares) for batch in shares]
    for loss in losses:
        loss.backward()
    found = {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}
    return {"loss": torch.stack(losses).sum().detach(), **found}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3, 6])
@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_loss_and_gradient_do_not_depend_on_how_a_batch_is_dealt(
    store: Path, world: int, dropout: float
) -> None:
    experiment = small(batch=6, memory_dropout=dropout, text_dropout=0.5, pure=0.3)
    experiment = attrs.evolve(experiment, masker=attrs.evolve(experiment.masker, clean=0.3))
    whole = gradients(experiment, store, [share(experiment, store)])
    dealt = gradients(experiment, store, [share(experiment, store, r, world) for r in range(world)])
    assert whole.keys() == dealt.keys()
    largest = max(float(x.abs().max()) for x in whole.values())
    for name, expected in whole.items():
        scale = max(float(expected.abs().max()), 1e-2 * largest)  # sums of large terms round so
        assert float((dealt[name] - expected).abs().max()) < 1e-5 * scale, name


def mine(folder: Path, settings: dict[str, object]) -> str:
    """The name of a small experiment with these settings, in a file of its own."""
    path = folder / "mine.py"
    path.write_text(f"from tests.small import small\n\nMINE = small(**{settings!r})\n", "utf-8")
    return f"{path}:MINE"


def together(
    folder: Path, settings: dict[str, object], store: Path, out: Path, *more: str,
    first: str = "",
) -> list[Forked]:  # fmt: skip
    """Run `longtake pretrain` in two processes, to its end; `more` are flags of either program."""
    verb = [] if "--resume" not in more else ["--resume", "latest"]
    words = ["pretrain", mine(folder, settings), "--data", store, "--out", out, *verb]
    flags = [flag for flag in more if flag != "--resume"]
    return pair(words, folder, *flags, first=first)


def both_trained(ended: list[Forked]) -> None:
    assert [one.process.exitcode for one in ended] == [0, 0], [one.err for one in ended]


def launch(
    folder: Path, settings: dict[str, object], store: Path, out: Path
) -> subprocess.CompletedProcess[str]:
    """Run `accelerate launch -m longtake pretrain` with two processes, to its end."""
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", *TWO, "-m", "longtake",
        "pretrain", mine(folder, settings), "--data", str(store), "--out", str(out),
    ]  # fmt: skip
    told = {"PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, env=os.environ | told, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS
    )


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_json_lines(run / "metrics.jsonl") if "loss" in line]


def agree(one: Path, other: Path, rate: float) -> None:
    """Losses agree to fp32 rounding, weights to a share of one step, and files name the same."""
    assert losses(one) == pytest.approx(losses(other), rel=1e-5)
    first, second = checkpoints(one)[-1], checkpoints(other)[-1]
    assert first.name == second.name
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        tensor = tensor.double()
        gap = float((tensor - b[name].double()).abs().max())
        limit = 0.05 * rate if ".safetensors/" in name else 1e-3 * float(tensor.abs().max())
        assert gap <= max(limit, 1e-9), name


@pytest.mark.slow
def test_the_launcher_trains_as_one_process(store: Path, tmp_path: Path) -> None:
    settings = {
        "batch": 4, "steps": 4, "gain_every": 2, "accumulate": 2, "memory_dropout": 0.5,
        "text_dropout": 0.5, "seed": 5,
    }  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    done = launch(tmp_path, settings, store, two)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done at step 4") == 1, "one process speaks"
    pretrain(small(**settings), store, one)
    as_one(one, two)


def as_one(one: Path, two: Path) -> None:
    agree(one, two, rate=1e-3)
    written = [{p.relative_to(run).parent for p in run.rglob("*")} for run in (one, two)]
    assert written[0] == written[1], "only the main process writes"


@pytest.mark.slow
def test_two_processes_fall_sick_as_one(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth step has no loss for the samples of the second process."""
    settings = {
        "batch": 4, "steps": 5, "gain_every": 2, "accumulate": 2, "memory_dropout": 1.0,
        "text_dropout": 0.5, "seed": 5,
    }  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    fault = f"from tests.train.launched import spoil\nspoil({str(tmp_path)!r}, 4, (1, 3))"
    ended = together(tmp_path, settings, store, two, first=fault)
    told = [json.loads((tmp_path / f"sick-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1] == [*batches_of(small(**settings), store)[4].names[1::2]]
    for process in ended:
        assert process.process.exitcode != 0
        assert f"on clips {', '.join(told[0])};" in process.err
    monkeypatch.setattr(StageOne, "forward", StageOne.forward)  # given back at the end
    monkeypatch.setattr(step, "_not_finite", step._not_finite)
    spoil(str(tmp_path), 4, (1, 3))
    with pytest.raises(LongtakeError, match=f"on clips {', '.join(told[0])};"):
        pretrain(small(**settings), store, one)
    as_one(one, two)


@pytest.mark.slow
def test_bad_input_ends_the_launcher_with_one_line(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = launch(tmp_path, {"batch": 3}, store, out)
    lines = [line for line in done.stderr.splitlines() if line.startswith("longtake: ")]
    assert done.returncode != 0
    words = "train.batch 3 cannot be dealt evenly over 2 processes"
    assert lines and all(words in line for line in lines), done.stderr
    assert "exitcode  : 2" in done.stderr and "longtake/core" not in done.stderr, done.stderr
    assert not out.exists(), "a refused run must leave nothing behind"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "data", "flags", "said"),
    [
        ({}, "none", (), "latent store"),
        ({"optimizer": "muon"}, "", FSDP, "muon needs whole matrices"),
        ({}, "", ("--use_fsdp", "--fsdp_version", "1"), "--fsdp_version 2"),
    ],
)
def test_bad_input_ends_all_processes_with_one_line(
    store: Path, tmp_path: Path, settings: dict[str, object], data: str, flags: tuple[str, ...],
    said: str,
) -> None:  # fmt: skip
    out = tmp_path / "run"
    ended = together(tmp_path, settings, tmp_path / data if data else store, out, *flags)
    for process in ended:
        lines = [line for line in process.err.splitlines() if line.startswith("longtake: ")]
        assert process.process.exitcode == 2, process.err
        assert len(lines) == 1 and said in lines[0], process.err
        assert "longtake/core" not in process.err
    assert not out.exists(), "a refused run must leave nothing behind"


def in_parts(folder: Path) -> None:
    """Both processes told that they hold a part of every weight, and together all of them."""
    told = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    (weights, first_sharded, first), (same, second_sharded, second) = told
    assert first_sharded and second_sharded, "whole weights: this is DDP, not FSDP"
    assert weights == same == first + second and 0 < second <= first < 0.75 * weights


@pytest.mark.slow
@pytest.mark.parametrize("trains,ema", [("all", 0.5), ("lora", 0.0)])
def test_fsdp2_saves_resumes_and_gives_the_files_of_one_process(
    store: Path, tmp_path: Path, trains: str, ema: float
) -> None:
    settings = {
        "batch": 4, "gain_every": 2, "save_every": 2, "keep": 9, "trains": trains, "ema": ema,
        "text_dropout": 0.5,
    }  # fmt: skip
    short, long = settings | {"steps": 2}, settings | {"steps": 4}
    whole, sharded, mixed, back = (tmp_path / name for name in ("whole", "sharded", "mix", "back"))
    pretrain(small(**long), store, whole)

    tell = f"from tests.train.launched import tell_parts\ntell_parts({str(tmp_path)!r})"
    both_trained(together(tmp_path, short, store, sharded, *FSDP, first=tell))
    in_parts(tmp_path)
    shutil.copytree(sharded, mixed)
    both_trained(together(tmp_path, long, store, sharded, *FSDP, "--resume"))
    agree(whole, sharded, rate=1e-3)  # saved and resumed with shards

    pretrain(small(**long), store, mixed, resume=True)
    agree(whole, mixed, rate=1e-3)  # saved with shards, resumed without

    pretrain(small(**short), store, back)
    both_trained(together(tmp_path, long, store, back, *FSDP, "--resume"))
    agree(whole, back, rate=1e-3)  # saved without shards, resumed with them
    assert load_run(back).experiment.train == small(**long).train


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), FSDP], ids=["ddp", "fsdp"])
def test_stage_two_trains_as_one_process(
    store: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """With steps whose memory is dropped, beginnings of clips, and pictures."""
    cut = FinetuneSpec(past=(0.5, 1.5), target=(0.5, 1.0), start="none")
    settings = {"batch": 4, "gain_every": 2, "memory_dropout": 0.5, "text_dropout": 0.5}
    experiment = small_finetune(cut, **settings)
    plans = [drops_memory(experiment.train.seed, step, 0.5) for step in range(4)]
    assert set(plans) == {True, False}
    one, two, path = tmp_path / "one", tmp_path / "two", tmp_path / "mine.py"
    path.write_text(
        "from longtake.core.experiment import FinetuneSpec\n"
        "from tests.small import small_finetune\n\n"
        f"MINE = small_finetune({cut!r}, **{settings!r})\n",
        "utf-8",
    )
    words = ["finetune", f"{path}:MINE", "--data", store, "--out", two]
    both_trained(pair(words, tmp_path, *flags))
    finetune(experiment, store, one)
    agree(one, two, rate=1e-3)
