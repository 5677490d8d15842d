"""`tiny-hunyuan` goes through the program: a store is cached, Stages 0 and I run and come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.hunyuan.specs import TinyHunyuan
from longtake.backbones.texts.specs import Bytes
from longtake.core.experiment import Experiment
from longtake.core.tools.files import read_json_lines
from longtake.core.train.checkpoint import checkpoints, load_run
from longtake.core.train.pretrain import pretrain
from longtake.core.values.history import History

from ..small import RATE, make_store, small

BACKBONE = TinyHunyuan(
    heads=2, head_width=12, rope=(4, 4, 4), layers=1, single_layers=1, refiner_layers=1,
    mlp_ratio=1.0, codec=Dct(channels=16), text_encoder=Bytes(width=8, length=8, pooled=6),
)  # fmt: skip


def experiment(changes: dict[str, Any], **train: Any) -> Experiment:
    return evolve(small(**train), backbone=evolve(BACKBONE, **changes))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"), experiment({}))


def test_every_parameter_has_a_gradient_without_memory(hunyuan: Any) -> None:
    model = hunyuan.small()
    context = model.context(hunyuan.text(2))
    noisy, t = hunyuan.noise(2, 16, 2, 4, 6), torch.tensor([0.2, 0.7])
    model.velocity(noisy, t, hunyuan.frames(0, 2, 2), context).square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def finite(run: Path) -> list[float]:
    losses = [line["loss"] for line in read_json_lines(run / "metrics.jsonl") if "loss" in line]
    assert losses and all(0 < loss < 100 for loss in losses)
    return losses


@pytest.mark.slow
def test_what_stage_0_leaves_is_the_base_of_the_next(store: Path, tmp_path: Path) -> None:
    plain = evolve(experiment({}), compressors=())
    pretrain(plain, store, tmp_path / "run")
    finite(tmp_path / "run")
    weights = checkpoints(tmp_path / "run")[-1] / "backbone"
    assert (weights / "config.json").exists()
    begun = experiment({"weights": str(weights)})
    pretrain(begun, store, tmp_path / "next")
    finite(tmp_path / "next")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"memory_time": 0.0}, marks=pytest.mark.slow),
        pytest.param({"attention": "isolated", "memory_time": 0.0}, marks=pytest.mark.slow),
        {"attention": "isolated-causal", "memory_time": 0.0, "cache_block": 4},
    ],
    ids=["shared", "clean", "isolated", "causal"],
)
def test_stage_1_trains_and_comes_back(store: Path, tmp_path: Path, changes: Any) -> None:
    pretrain(experiment(changes, trains="lora"), store, tmp_path / "run")
    finite(tmp_path / "run")
    one, two = load_run(tmp_path / "run"), load_run(tmp_path / "run")
    noise = torch.randn(1, 16, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    history = History(latents=noise, lr={RATE: noise[:, :, ::2, ::2, ::2]})
    memory, text = one.encoder(history), one.backbone.blank_text(1, 3)
    outs = [
        m.backbone.velocity(noise[:, :, :1], torch.tensor([0.5]), torch.tensor([[7]]),
                            m.backbone.context(text, memory))
        for m in (one, two)
    ]  # fmt: skip
    assert torch.equal(*outs) and bool(outs[0].isfinite().all())
    assert all(bool(p.any()) for n, p in one.backbone.adapters().items() if ".lora_B." in n)
