"""Precision of what trains, and frozen LoRAs beside it."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from attrs import evolve
from safetensors.torch import load_file

from longtake.core.errors import UserError
from longtake.core.experiment import Experiment
from longtake.core.interfaces.spec import LoRA
from longtake.core.model import build_model
from longtake.core.train import optim
from longtake.core.train import pretrain as pretraining
from longtake.core.train.checkpoint import checkpoints, load_run, read_state
from longtake.core.train.pretrain import pretrain

from ..small import small
from .runs import same, tensors
from .test_resume import at


def lora(**train: object) -> Experiment:
    settings: dict[str, object] = {"trains": "lora", "steps": 5, "save_every": 100, "gain_every": 9}
    return small(**(settings | train))


def beside(experiment: Experiment, folder: Path) -> Experiment:
    """The experiment with a LoRA beside its own that does something."""
    model = build_model(experiment, adapters=True).backbone
    for weight in model.adapters().values():
        torch.nn.init.normal_(weight, std=0.2)
    model.save_adapters(folder / "other.safetensors")
    changed = evolve(experiment.backbone, loras=(f"{folder / 'other.safetensors'}@0.5",))
    return evolve(experiment, backbone=changed)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_bf16_adapters_resume_exactly(store: Path, tmp_path: Path, optimizer: str) -> None:
    adapter = LoRA(rank=2, alpha=2.0, dtype="bfloat16")
    experiment = lora(adapter=adapter, optimizer=optimizer)
    pretrain(experiment, store, tmp_path / "whole")
    pretrain(experiment, store, tmp_path / "parts", progress=at(2, signal.SIGINT))
    pretrain(experiment, store, tmp_path / "parts", resume=True)
    same(tmp_path / "whole", tmp_path / "parts")
    held = tensors(checkpoints(tmp_path / "parts")[-1])
    assert {x.dtype for n, x in held.items() if n.startswith("lora")} == {torch.bfloat16}
    moments = [x for n, x in held.items() if n.endswith(("exp_avg", "momentum_buffer"))]
    assert torch.bfloat16 in {x.dtype for x in moments}


@pytest.mark.slow
@pytest.mark.parametrize("begins,means", [(False, "fp32"), (True, "bf16")])
def test_auto_is_kept_where_another_machine_goes_on(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begins: bool, means: str
) -> None:
    experiment, run = small(precision="auto", steps=3, save_every=100, gain_every=9), tmp_path
    monkeypatch.setattr(pretraining, "uses_bf16", lambda *_: begins)
    pretrain(experiment, store, run / "whole")
    pretrain(experiment, store, run / "parts", progress=at(1, signal.SIGINT))
    monkeypatch.setattr(pretraining, "uses_bf16", lambda *_: not begins)
    pretrain(experiment, store, run / "parts", resume=True)
    same(run / "whole", run / "parts")
    assert read_state(checkpoints(run / "parts")[-1])["precision"] == means
    spec = json.loads((run / "parts" / "spec.json").read_text())
    assert (spec["precision"], spec["experiment"]["train"]["precision"]) == (means, "auto")
    pretrain(experiment, store, run / "other")
    assert read_state(checkpoints(run / "other")[-1])["precision"] != means, "a fresh one asks"


@pytest.mark.slow
def test_a_run_beside_other_loras_resumes_exactly_and_saves_its_own(
    store: Path, tmp_path: Path
) -> None:
    experiment = beside(lora(), tmp_path)
    pretrain(experiment, store, tmp_path / "whole")
    pretrain(experiment, store, tmp_path / "parts", progress=at(2, signal.SIGINT))
    pretrain(experiment, store, tmp_path / "parts", resume=True)
    same(tmp_path / "whole", tmp_path / "parts")
    held = load_file(checkpoints(tmp_path / "whole")[-1] / "lora.safetensors")
    model = load_run(tmp_path / "whole").backbone
    assert set(held) == {f"transformer.{name}" for name in model.adapters()}
    names = {name for name, _ in model.named_parameters() if "lora_A" in name}
    assert len(names) == 2 * sum("lora_A" in name for name in held)


def test_all_cannot_train_beside_frozen_loras(store: Path, tmp_path: Path) -> None:
    experiment = beside(lora(), tmp_path)
    experiment = evolve(experiment, train=evolve(experiment.train, trains="all"))
    with pytest.raises(UserError, match="weights of this backbone are frozen"):
        pretrain(experiment, store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_8_bits_need_bitsandbytes(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "longtake\[bitsandbytes\]"'):
        pretrain(lora(optimizer_bits=8), store, tmp_path / "run")
    monkeypatch.setattr(optim, "find_spec", lambda name: object())
    monkeypatch.setattr(optim, "pick_device", lambda: torch.device("cpu"))
    with pytest.raises(UserError, match="optimizer_bits 8 needs a GPU"):
        pretrain(lora(optimizer_bits=8), store, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="optimizer_bits 8 is of adamw, muon keeps 32"):
        lora(optimizer_bits=8, optimizer="muon")
    with pytest.raises(ValueError, match="optimizer_bits"):
        lora(optimizer_bits=16)


@pytest.mark.gpu
def test_8_bit_moments_resume(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    if not torch.cuda.is_available():
        pytest.skip("8-bit moments need a GPU")
    experiment = lora(optimizer_bits=8, adapter=LoRA(rank=512, alpha=512.0))  # large enough
    pretrain(experiment, store, tmp_path / "parts", progress=at(2, signal.SIGINT))
    pretrain(experiment, store, tmp_path / "parts", resume=True)
    held = tensors(checkpoints(tmp_path / "parts")[-1])
    assert torch.uint8 in {x.dtype for n, x in held.items() if n.startswith("optimizer")}
