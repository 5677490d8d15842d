"""HunyuanVideo's blocks read the features of a memory, in both kinds, under checkpointing too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from longtake.backbones.hunyuan.model import HunyuanBackbone
from longtake.core.values.memory import Memory

pytestmark = pytest.mark.slow  # the same laws as of Wan, in test_enhancer

WIDTHS = {"test.last": 7}
KINDS = ("full", "isolated", "isolated-causal")


def memory(hunyuan: Any, features: Tensor) -> Memory:
    part = hunyuan.memory(2, features.shape[1]).parts[0]
    places = part.positions.clone()
    places[..., 0] = torch.arange(features.shape[1]).double()
    return Memory(parts=(attrs.evolve(part, positions=places, features={"last": features}),))


def velocity(model: HunyuanBackbone, hunyuan: Any, seen: Memory) -> Tensor:
    context = model.context(hunyuan.text(2), seen)
    x = hunyuan.noise(2, 16, 2, 4, 6)
    return model.velocity(x, torch.tensor([0.2, 0.7]), hunyuan.frames(7, 2, 2), context)


def enhanced(hunyuan: Any, attention: str) -> HunyuanBackbone:
    model: HunyuanBackbone = hunyuan.small(attention=attention, memory_time=0.0, cache_block=4)
    model.add_enhancer(WIDTHS)
    return model


def awaken(model: HunyuanBackbone) -> HunyuanBackbone:
    random = torch.Generator().manual_seed(4)
    for name, weight in model.adapters().items():
        if ".to_out." in name:
            torch.nn.init.normal_(weight, std=0.3, generator=random)
    return model


@torch.no_grad()
@pytest.mark.parametrize("attention", KINDS)
def test_features_add_nothing_at_first_and_something_then(hunyuan: Any, attention: str) -> None:
    seen = memory(hunyuan, hunyuan.noise(2, 5, 7, seed=9))
    plain = hunyuan.small(attention=attention, memory_time=0.0, cache_block=4)
    bare = Memory(parts=(attrs.evolve(seen.parts[0], features={}),))
    model = enhanced(hunyuan, attention)
    before = velocity(plain, hunyuan, bare)
    assert torch.equal(velocity(model, hunyuan, seen), before)
    assert not torch.equal(velocity(awaken(model), hunyuan, seen), before)
    names = {name.split(".")[0] for name in model.adapters()}
    assert names == {"transformer_blocks", "single_transformer_blocks"}


@pytest.mark.parametrize("attention", KINDS)
def test_checkpointing_keeps_gradients(hunyuan: Any, attention: str) -> None:
    model, found = awaken(enhanced(hunyuan, attention)), []
    for on in (False, True):
        model.set_checkpointing(on)
        values = hunyuan.noise(2, 5, 7, seed=9).requires_grad_(True)
        model.zero_grad(set_to_none=True)
        first = velocity(model, hunyuan, memory(hunyuan, values))
        second = velocity(model, hunyuan, memory(hunyuan, values * 2))
        (first + second).square().sum().backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append(grads | {"features": values.grad})
    plain, saved = found
    assert plain.keys() == saved.keys()
    assert all(torch.equal(plain[name], saved[name]) for name in plain)
    assert all(bool(plain[name].any()) for name in (*model.adapters(), "features"))


@torch.no_grad()
def test_saved_and_loaded_they_give_the_same(hunyuan: Any, tmp_path: Path) -> None:
    model, other = awaken(enhanced(hunyuan, "isolated")), enhanced(hunyuan, "isolated")
    seen = memory(hunyuan, hunyuan.noise(2, 5, 7, seed=9))
    model.save_adapters(tmp_path / "lora.safetensors")
    other.load_adapters(tmp_path / "lora.safetensors")
    assert torch.equal(velocity(other, hunyuan, seen), velocity(model, hunyuan, seen))
