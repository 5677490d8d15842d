"""Micro-batches: the same step with less memory; and steps that must not be taken."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from attrs import evolve

from longtake.backbones.wan.published import TinyWanBackbone
from longtake.core.data.windows import Batch, WindowBatches
from longtake.core.errors import LongtakeError, UserError
from longtake.core.experiment import Experiment
from longtake.core.tools.files import read_json_lines
from longtake.core.train.checkpoint import checkpoints, load_run
from longtake.core.train.loss import StageOne
from longtake.core.train.pretrain import check_shares, pretrain
from longtake.core.train.trainer import forward_backward
from longtake.core.train.worker import TrainWorker
from longtake.core.values.history import History, Query
from longtake.core.values.memory import Memory
from longtake.plugins.compressors.conv import ConvCompressor
from longtake.plugins.maskers.hiding import NoiseMasker

from ..small import small
from .runs import batches_of, stage_of


def gradient(experiment: Experiment, store: Path) -> dict[str, torch.Tensor]:
    """Every gradient of one step in float64, and its loss."""
    stage = stage_of(experiment, store).double()
    accelerator = Accelerator(cpu=True)
    model = SimpleNamespace(encoder=stage.encoder, backbone=stage.backbone)
    worker = TrainWorker(experiment, store, model, stage, stage, None, accelerator)
    batch = batches_of(experiment, store)[3]
    history = batch.history.to("cpu", torch.float64)
    double = evolve(batch, history=history, text=batch.text.to("cpu", torch.float64))
    loss = forward_backward(worker, double, 3)
    found = {n: p.grad for n, p in stage.named_parameters() if p.grad is not None}
    return found | {"loss": torch.tensor(loss, dtype=torch.float64)}


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 1.0])
@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_a_step_is_the_same_in_micro_batches(store: Path, accumulate: int, dropout: float) -> None:
    settings = {"batch": 6, "memory_dropout": dropout, "text_dropout": 0.5, "pure": 0.3}
    whole = gradient(small(**settings), store)
    dealt = gradient(small(accumulate=accumulate, **settings), store)
    assert whole.keys() == dealt.keys()
    for name, expected in whole.items():
        scale = float(expected.abs().max()) or 1.0
        assert float((dealt[name] - expected).abs().max()) < 2e-6 * scale, name


@pytest.mark.slow
def test_runs_in_micro_batches_log_the_same(store: Path, tmp_path: Path) -> None:
    losses = []
    for accumulate in (1, 4):
        run = tmp_path / str(accumulate)
        pretrain(small(batch=4, accumulate=accumulate, gain_every=4), store, run)
        losses.append([x["loss"] for x in read_json_lines(run / "metrics.jsonl") if "loss" in x])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_dealing_keeps_every_sample_and_its_place(store: Path) -> None:
    batch = batches_of(small(batch=6), store)[0]
    parts = batch.deal(3)
    assert sorted(place for part in parts for place in part.places) == list(range(6))
    for part in parts:
        assert part.history.batch == len(part.names) == part.text.mask.shape[0] == 2
        for row, place in enumerate(part.places):
            assert part.names[row] == batch.names[place]
            assert torch.equal(part.history.latents[row], batch.history.latents[place])
    with pytest.raises(ValueError, match="6 samples"):
        batch.deal(4)


def test_a_batch_that_cannot_be_dealt_is_refused() -> None:
    with pytest.raises(ValueError, match="batch 6"):
        small(batch=6, accumulate=4)
    check_shares(small(batch=8, accumulate=2).train, 4)
    with pytest.raises(UserError, match="multiple of 8") as error:
        check_shares(small(batch=12, accumulate=2).train, 4)
    assert "\n" not in str(error.value)


def spoil(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Make the loss, or only its gradient, not finite for the first sample of step 3."""
    real = StageOne.forward

    def forward(self: StageOne, batch: Batch, step: int) -> torch.Tensor:
        loss = real(self, batch, step)
        if step != 3 or 0 not in batch.places:
            return loss
        if what == "gradient":
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss * float("nan") if what == "loss" else loss

    monkeypatch.setattr(StageOne, "forward", forward)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("what", ["loss", pytest.param("gradient", marks=pytest.mark.slow)])
def test_a_sick_step_stops_the_run_with_its_clips_named(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int, what: str
) -> None:
    experiment = small(batch=4, accumulate=accumulate, steps=6, save_every=1)
    names = batches_of(experiment, store)[3].names
    blamed = names[::accumulate] if what == "loss" else names  # a gradient is a sum of all
    spoil(monkeypatch, what)
    with pytest.raises(LongtakeError, match=f"the {what} is (nan|inf) at step 3") as error:
        pretrain(experiment, store, tmp_path)
    assert f"on clips {', '.join(blamed)};" in str(error.value)
    model = load_run(tmp_path)
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3"]
    parameters = [*model.encoder.parameters(), *model.backbone.parameters()]
    assert all(torch.isfinite(p).all() for p in parameters)
    monkeypatch.undo()
    assert pretrain(experiment, store, tmp_path, resume=True).step == 6


def poison(monkeypatch: pytest.MonkeyPatch, cls: type, method: str, at: int) -> None:
    """Make what a method returns no number, from its call number `at` on."""
    real, calls = getattr(cls, method), count()

    def poisoned(self: Any, *arguments: Any) -> Any:
        made = real(self, *arguments)
        if next(calls) < at:
            return made
        if isinstance(made, torch.Tensor):
            return made * float("nan")
        if isinstance(made, Query):
            return evolve(made, targets=made.targets * float("inf"))
        part = evolve(made.parts[0], tokens=made.parts[0].tokens * float("nan"))
        return evolve(made, parts=(part,))

    monkeypatch.setattr(cls, method, poisoned)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "method", "at", "said"),
    [
        (ConvCompressor, "forward", 0, r"compressor 'conv' \(.*conv.py\) gives it first, and "
         r"nothing has trained yet, .* or mend compressor 'conv'"),
        (ConvCompressor, "forward", 1, r"compressor 'conv' \(.*\) gives it first; no checkpoint is "
         r"saved yet: start again with a lower train.rate"),
        (TinyWanBackbone, "_velocity", 3, r"backbone 'tiny-wan' \(.*published.py\) gives it first; "
         r"checkpoint-2 is whole: lower train.rate, .* --resume latest"),
        (TinyWanBackbone, "_velocity", 2, r"first, from the weights of checkpoint-2 as they are"),
        (NoiseMasker, "__call__", 0, r"masker 'noise' \(.*\) gives it first"),
        (WindowBatches, "__getitem__", 0, r"the data gives it first: cache those clips again"),
    ],
    ids=["compressor", "unsaved", "backbone", "saved", "masker", "data"],
)  # fmt: skip
def test_numbers_that_are_none_name_their_maker_and_fitting_advice(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    cls: type, method: str, at: int, said: str,
) -> None:  # fmt: skip
    experiment = small(steps=4, save_every=2, gain_every=1000, memory_dropout=0.0)
    if cls is WindowBatches:
        real = WindowBatches.__getitem__

        def broken(self: WindowBatches, step: int) -> Batch:
            batch = real(self, step)
            return evolve(batch, history=evolve(batch.history, latents=batch.history.latents / 0))

        monkeypatch.setattr(WindowBatches, "__getitem__", broken)
    else:
        poison(monkeypatch, cls, method, at)
    with pytest.raises(
        LongtakeError, match=rf"the loss is (nan|inf) at step {at}.*{said}"
    ) as error:
        pretrain(experiment, store, tmp_path)
    assert ("last checkpoint" in str(error.value)) is False
    assert ("--resume" in str(error.value)) == (at == 3)


def test_a_gradient_that_is_none_names_whose_backward_pass_makes_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ConvCompressor.forward

    def forward(self: ConvCompressor, history: History) -> Memory:
        memory = real(self, history)
        tokens = memory.parts[0].tokens + 0  # what the backbone's own gradients do not pass
        tokens.register_hook(lambda gradient: gradient * float("nan"))
        return evolve(memory, parts=(evolve(memory.parts[0], tokens=tokens),))

    monkeypatch.setattr(ConvCompressor, "forward", forward)
    with pytest.raises(LongtakeError, match=r"the gradient is nan at step 0") as error:
        pretrain(small(memory_dropout=0.0), store, tmp_path)
    assert "the backward pass of compressor 'conv' (" in str(error.value)
