"""The contract of backbones catches each kind of wrong one, and says what it cannot check."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from longtake.backbones.hunyuan.model import HunyuanBackbone
from longtake.backbones.hunyuan.specs import TinyHunyuan
from longtake.backbones.wan.model import WanBackbone
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.core.contract import check_backbone
from longtake.core.interfaces.backbone import VelocityCall
from longtake.core.interfaces.compressor import Fit
from longtake.core.values.memory import Part


class ZeroFit(TinyWanBackbone):
    def fit(self) -> Fit:
        fit = super().fit()
        return attrs.evolve(fit, patch_weight=torch.zeros_like(fit.patch_weight))


class ScaledFit(TinyWanBackbone):
    def fit(self) -> Fit:
        fit = super().fit()
        return attrs.evolve(fit, patch_weight=fit.patch_weight * 2)


class ReorderedFit(TinyWanBackbone):
    def fit(self) -> Fit:
        fit = super().fit()
        return attrs.evolve(fit, patch_weight=fit.patch_weight.flip(-1))


class SwappedFit(TinyWanBackbone):
    def fit(self) -> Fit:
        fit = super().fit()
        return attrs.evolve(fit, patch_weight=fit.patch_weight.flip(1))


class SharedFit(TinyWanBackbone):
    def fit(self) -> Fit:
        weight, bias = (x.detach() for x in self.fitted())
        return Fit(geometry=self.geometry, patch_weight=weight, patch_bias=bias)


class NoPlaces(TinyWanBackbone):
    def _memory_positions(self, part: Part) -> tuple[Tensor, Tensor | None]:
        return torch.zeros_like(part.positions), None


class NoColumns(TinyWanBackbone):
    def _memory_positions(self, part: Part) -> tuple[Tensor, Tensor | None]:
        return part.positions * torch.tensor([1.0, 1.0, 0.0]), None


class LatePlaces(TinyWanBackbone):
    def _memory_positions(self, part: Part) -> tuple[Tensor, Tensor | None]:
        return part.positions + torch.tensor([1.0, 0.0, 0.0]), None


class TransposedPlaces(TinyWanBackbone):
    def _memory_positions(self, part: Part) -> tuple[Tensor, Tensor | None]:
        return part.positions[..., [0, 2, 1]], None


class CleanMemory(TinyWanBackbone):
    def _memory_stream(self, part: Part, t: Tensor | None) -> Any:
        return super()._memory_stream(part, None if t is None else t * 0)


class NoTime(TinyWanBackbone):
    def _velocity(self, call: VelocityCall) -> Tensor:
        return super()._velocity(attrs.evolve(call, t=torch.full_like(call.t, 0.5)))


class UnscaledTime(TinyWanBackbone):
    def _velocity(self, call: VelocityCall) -> Tensor:
        return super()._velocity(attrs.evolve(call, t=call.t / 1000))


class ReversedTime(TinyWanBackbone):
    def _velocity(self, call: VelocityCall) -> Tensor:
        return super()._velocity(attrs.evolve(call, t=1 - call.t))


class Negated(TinyWanBackbone):
    def _velocity(self, call: VelocityCall) -> Tensor:
        return -super()._velocity(call)


class NoNoise(TinyWanBackbone):
    def _velocity(self, call: VelocityCall) -> Tensor:
        return super()._velocity(attrs.evolve(call, noisy=torch.ones_like(call.noisy)))


class LosesAdapters(TinyWanBackbone):
    def load_adapters(self, path: Path) -> None:
        if not self.adapters():
            super().load_adapters(path)


class OtherScale(TinyWanBackbone):
    def load_adapters(self, path: Path) -> None:
        super().load_adapters(path)
        with torch.no_grad():
            for weight in self.adapters().values():
                weight.mul_(0.5)


class ForgetsABlock(TinyWanBackbone):
    def save_weights(self, folder: Path) -> None:
        before = self.blocks[0].ffn.net[2].weight.clone()
        self.blocks[0].ffn.net[2].weight.zero_()
        super().save_weights(folder)
        self.blocks[0].ffn.net[2].weight.copy_(before)


class SavesAdapted(TinyWanBackbone):
    def save_weights(self, folder: Path) -> None:
        if not self.adapters():
            super().save_weights(folder)


class CheckpointsOtherwise(TinyWanBackbone):
    def _memory_tokens(self, part: Part) -> Tensor:
        tokens = super()._memory_tokens(part)
        return tokens.detach() + 0 * tokens if self.gradient_checkpointing else tokens


WRONG = [
    (ZeroFit, "fit: patch_weight is all zero"),
    pytest.param(ScaledFit, "fit: the numbers of a weight", marks=pytest.mark.slow),
    (SharedFit, "fit: it shares"),
    (ReorderedFit, "longer-video law"),
    pytest.param(SwappedFit, "longer-video law", marks=pytest.mark.slow),
    (NoPlaces, "the time of a memory's places does not"),
    pytest.param(NoColumns, "the column of a memory's places does not", marks=pytest.mark.slow),
    pytest.param(LatePlaces, "longer-video law", marks=pytest.mark.slow),
    (TransposedPlaces, "longer-video law"),
    (CleanMemory, "a memory of padding alone against none"),
    (NoTime, "the time t does not change"),
    (NoNoise, "the noisy latents do not change"),
    (UnscaledTime, r"is t scaled as the model's\?"),
    pytest.param(ReversedTime, "the velocity is not the reference's at t", marks=pytest.mark.slow),
    (Negated, "the velocity is the negative of the reference's"),
    (CheckpointsOtherwise, "with checkpointing, the gradient of memory"),
    pytest.param(
        LosesAdapters, "the velocity of adapters loaded into others", marks=pytest.mark.slow
    ),
    (OtherScale, "the velocity of adapters loaded into others"),
    (SavesAdapted, "save_weights writes a model with adapters"),
    (ForgetsABlock, "the velocity of saved and loaded weights"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("wrong", "line"), WRONG, ids=lambda x: getattr(x, "__name__", ""))
def test_each_wrong_backbone_is_caught(wan: Any, wrong: type[WanBackbone], line: str) -> None:
    spec = wan.spec(layers=1)
    with pytest.raises(AssertionError, match=line) as caught:
        check_backbone(wrong.load(spec), spec=spec)
    assert "\n" not in str(caught.value)


def test_a_wrong_recipe_is_caught(wan: Any) -> None:
    spec = wan.spec(layers=1)
    recipe = {**spec.recipe, "encoder.width": 3}
    wrong = attrs.frozen(kw_only=True)(type("Wrong", (type(spec),), {"recipe": recipe}))
    with pytest.raises(AssertionError, match="the recipe of Wrong: encoder.width: unknown key"):
        check_backbone(TinyWanBackbone.load(spec), spec=wrong())


@pytest.mark.slow
def test_what_cannot_be_checked_is_said(wan: Any, monkeypatch: Any) -> None:
    spec = wan.spec(layers=1)
    assert check_backbone(TinyWanBackbone.load(spec), spec=spec) == ()
    monkeypatch.setattr(TinyWanBackbone, "reference", lambda self: None)
    monkeypatch.setattr(TinyWanBackbone, "joint", lambda self, memory_time=None: None)
    lines = check_backbone(Negated.load(spec))
    assert [line.split(":")[0] for line in lines] == [
        "sign and time scale not checked",
        "longer-video law not checked",
        "loading of saved weights not checked",
    ]


def test_a_reference_that_is_given_says_what_is_right(wan: Any) -> None:
    wrong = Negated.load(wan.spec(layers=1))
    right = TinyWanBackbone.load(wan.spec(layers=1))
    right.load_state_dict(wrong.state_dict())
    with pytest.raises(AssertionError, match="the negative of the reference's"):
        check_backbone(wrong, reference=right.reference())


@pytest.mark.slow
def test_it_is_left_as_it_was(wan: Any) -> None:
    model = wan.small(layers=1)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    check_backbone(model)
    after = model.state_dict()
    assert before.keys() == after.keys() and not model.adapters()
    assert all(torch.equal(after[name], x) for name, x in before.items())


@pytest.mark.slow
def test_rounding_of_frozen_weights_is_no_fault() -> None:
    """Torch rounds a linear of cut tensors otherwise once its weight is frozen, as by LoRA."""
    spec = TinyHunyuan(layers=1, single_layers=1, weights=None)
    model = HunyuanBackbone.load(spec, seed=0)
    assert check_backbone(model, spec=spec) == ()
