"""The average: what it is, what users read, and what resuming goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import Parameter

from longtake.core.errors import UserError
from longtake.core.tools.files import write_tensors
from longtake.core.train.checkpoint import checkpoints, load_model
from longtake.core.train.ema import EMA, decay_at, trainable_parameters
from longtake.core.train.pretrain import pretrain
from longtake.core.train.trainer import Trainer

from ..small import small
from .runs import stage_of


@settings(max_examples=30, deadline=None)
@given(decay=st.floats(0.5, 0.9999), values=st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_the_average_is_the_recurrence(decay: float, values: list[float]) -> None:
    weight = Parameter(torch.tensor([values[0]], dtype=torch.bfloat16))
    average = EMA.of({"w": weight}, decay)
    expected = weight.detach().double()
    for n, value in enumerate(values[1:]):
        weight.data.fill_(value)
        average.update()
        share = min(decay, (1 + n) / (10 + n))
        expected = share * expected + (1 - share) * weight.detach().double()
    assert average.mean["w"].dtype == torch.float32
    assert average.mean["w"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_decay_warms_up_to_its_value() -> None:
    decays = [decay_at(0.99, n) for n in range(2000)]
    assert decays[0] == 0.1 and decays == sorted(decays) and decays[-1] == 0.99


def test_showing_the_average_gives_the_weights_back(store: Path) -> None:
    stage = stage_of(small(trains="lora"), store)
    weights = trainable_parameters(stage)
    average = EMA.of(weights, 0.9)
    with torch.no_grad():
        for weight in weights.values():
            weight += 1
    average.update()
    raw = {name: weight.detach().clone() for name, weight in weights.items()}
    with pytest.raises(RuntimeError, match="inside"), average.applied():
        assert all(torch.equal(weights[n], average.mean[n]) for n in weights)
        assert not any(torch.equal(weights[n], raw[n]) for n in weights)
        raise RuntimeError("inside")
    assert all(torch.equal(weights[n], raw[n]) for n in weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trains",
    [
        "lora",
        pytest.param("all", marks=pytest.mark.slow),
        pytest.param("encoder", marks=pytest.mark.slow),
    ],
)
def test_users_read_the_average_and_training_goes_on_from_the_raw_weights(
    store: Path, tmp_path: Path, trains: str
) -> None:
    settings = {"trains": trains, "steps": 4, "save_every": 9, "log_every": 1}
    pretrain(small(ema=0.9, **settings), store, tmp_path / "ema")
    pretrain(small(**settings), store, tmp_path / "plain")
    newest = checkpoints(tmp_path / "ema")[-1]
    state = newest / "training_state"
    raw = load_file(state / "raw.safetensors")
    mean = load_file(state / "average.safetensors")
    read = dict(_stage(newest, small(**settings)).items())
    plain = _stage(checkpoints(tmp_path / "plain")[-1], small(**settings))
    assert raw.keys() == mean.keys() and raw
    for name in raw:
        assert torch.equal(read[name], mean[name]), name
        assert torch.equal(plain[name], raw[name]), "the average must not change the training"
    assert any(not torch.equal(raw[name], mean[name]) for name in raw)
    assert not (checkpoints(tmp_path / "plain")[-1] / "training_state/raw.safetensors").exists()


def _stage(checkpoint: Path, experiment) -> dict[str, torch.Tensor]:
    model = load_model(checkpoint, experiment)
    encoder = {f"encoder.{n}": p.detach() for n, p in model.encoder.named_parameters()}
    return encoder | {f"backbone.{n}": p.detach() for n, p in model.backbone.named_parameters()}


@pytest.mark.slow
def test_starting_from_a_run_begins_at_its_average(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = small(ema=0.9, steps=4, trains="encoder")
    pretrain(experiment, store, tmp_path / "first")
    start = checkpoints(tmp_path / "first")[-1]
    begun = {}
    real = Trainer.train

    def train(self, progress):
        weights = trainable_parameters(self.worker.stage)
        begun.update({n: p.detach().clone() for n, p in weights.items()})
        assert self.worker.average.updates == 0
        return real(self, progress)

    monkeypatch.setattr(Trainer, "train", train)
    pretrain(experiment, store, tmp_path / "second", start=start)
    mean = load_file(start / "training_state" / "average.safetensors")
    assert begun.keys() == mean.keys()
    assert all(torch.equal(begun[name], mean[name]) for name in mean)


@pytest.mark.slow
def test_gain_is_measured_on_what_users_get(store: Path, tmp_path: Path) -> None:
    settings = {"steps": 4, "gain_every": 4, "rate": 3e-2, "save_every": 9}
    with_mean = pretrain(small(ema=0.9, **settings), store, tmp_path / "ema")
    without = pretrain(small(**settings), store, tmp_path / "plain")
    assert with_mean.loss == without.loss, "the loss is that of the weights that train"
    assert with_mean.gain != without.gain


@pytest.mark.slow
@pytest.mark.parametrize("file", ["raw", "average"])
@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_damaged_state_is_one_line(store: Path, tmp_path: Path, file: str, damage: str) -> None:
    experiment = small(ema=0.9, steps=2, trains="encoder")
    pretrain(experiment, store, tmp_path / "run")
    path = checkpoints(tmp_path / "run")[-1] / "training_state" / f"{file}.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "other":
        write_tensors(path, {"x": torch.zeros(2)}, {"updates": 0})
    else:
        path.unlink()
    longer = evolve(experiment, train=evolve(experiment.train, steps=4))
    with pytest.raises(UserError, match=f"{file}.safetensors") as error:
        pretrain(longer, store, tmp_path / "run", resume=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [1.0, -0.1, 2.0])
def test_a_decay_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="off"):
        small(ema=value)
