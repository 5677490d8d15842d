"""Memory in Wan: the cache, gradients, checkpointing, ragged batches, hooks (design §3, §7.5)."""

from __future__ import annotations

import logging
from typing import Any

import attrs
import pytest
import torch
from diffusers.hooks.group_offloading import ModuleGroup
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.backbones.blocks import attention
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.core.interfaces.backbone import Backbone
from longtake.core.interfaces.spec import LoRA
from longtake.core.values.memory import Memory

STEPS = (1.0, 0.6, 0.2)


def clones(model: Backbone) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def with_tokens(memory: Memory, tokens: Tensor) -> Memory:
    return Memory(parts=(attrs.evolve(memory.parts[0], tokens=tokens),))


@pytest.mark.slow
@pytest.mark.parametrize("time", ["sample", "token"])
def test_one_cache_serves_steps_branches_and_prompts(wan: Any, time: str) -> None:
    model, memory = wan.isolated(time=time, layers=3), wan.memory(2, 7)
    frames = torch.stack([wan.frames(5, 2)[0], wan.frames(90, 2)[0]])
    with torch.no_grad():
        cache = model.remember(memory)
        for prompt in (wan.text(2), wan.text(2, seed=9, length=6), model.blank_text(2, 4)):
            kept, made = model.context(prompt, cache), model.context(prompt, memory)
            for step in STEPS:
                x, t = wan.noise(2, 16, 2, 5, 6, seed=int(step * 10)), torch.full((2,), step)
                velocity = model.velocity(x, t, frames, kept)
                assert torch.equal(velocity, model.velocity(x, t, frames, made))


def test_isolated_keys_know_neither_prompt_nor_time(wan: Any) -> None:
    model, memory = wan.isolated(), wan.memory(1, 5)
    with torch.no_grad():
        one = model.remember(memory)
        model.velocity(wan.noise(1, 16, 2, 4, 4), torch.rand(1), wan.frames(0, 2),
                       model.context(wan.text(1), memory))  # fmt: skip
        two = model.remember(memory)
    assert all(map(torch.equal, one.keys + one.values, two.keys + two.values))
    assert len(one.keys) == 2 and one.keys[0].shape == (1, 5, 2, 20) and one.length == 5


def test_the_last_block_makes_keys_only(wan: Any) -> None:
    model, calls = wan.isolated(), []
    for index, block in enumerate(model.blocks):
        for name in ("attn1.to_q", "attn1.to_k", "ffn"):

            def note(*_: Any, at: tuple[int, str] = (index, name)) -> None:
                calls.append(at)

            block.get_submodule(name).register_forward_hook(note)
    model.remember(wan.memory(1, 3))
    assert set(calls) == {(0, "attn1.to_q"), (0, "attn1.to_k"), (0, "ffn"), (1, "attn1.to_k")}


def test_memory_that_shares_the_targets_time_is_one_stream_with_them(wan: Any) -> None:
    model, calls = wan.small(layers=3), []
    for block in model.blocks:
        block.attn1.to_k.register_forward_hook(lambda _, inputs, out: calls.append(out.shape[1]))
    context = model.context(wan.text(1), wan.memory(1, 5))
    model.velocity(wan.noise(1, 16, 1, 4, 4), torch.ones(1), wan.frames(0, 1), context)
    assert calls == [5 + 4, 5 + 4, 5, 4]  # apart in the last block, which drops memory


def test_what_a_cache_refuses(wan: Any) -> None:
    full, isolated, memory = wan.small(), wan.isolated(), wan.memory(1, 3)
    cache = isolated.remember(memory)
    with pytest.raises(ValueError, match="full attention has no cache"):
        full.remember(memory)
    with pytest.raises(ValueError, match="isolated-causal"):
        isolated.remember(memory, cache)
    with pytest.raises(ValueError, match="not a cache"):
        full.context(wan.text(1), cache)


def test_text_is_projected_once(wan: Any) -> None:
    model, calls = wan.small(), []
    model.condition_embedder.text_embedder.register_forward_hook(lambda *_: calls.append(1))
    context = model.context(wan.text(1))
    for step in STEPS:
        x = wan.noise(1, 16, 1, 4, 4)
        model.velocity(x, torch.tensor([step]), wan.frames(0, 1), context)
    assert len(calls) == 1 and context.text.embeddings.requires_grad


def loss_of(model: TinyWanBackbone, wan: Any, memory: Memory, seed: int = 1) -> Tensor:
    context = model.context(wan.text(2), memory)
    x = wan.noise(2, 16, 2, 4, 6, seed=seed)
    out: Tensor = model.velocity(x, torch.tensor([0.2, 0.7]), wan.frames(4, 2, 2), context)
    return out.square().mean()


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["full", "isolated", "isolated-causal"])
@pytest.mark.parametrize("lora", [False, True])
def test_checkpointing_keeps_gradients(wan: Any, attention: str, lora: bool) -> None:
    """Two forwards before one backward: what per-call state on processors would spoil."""
    model = wan.small(attention=attention, memory_time=0.0)
    if lora:
        model.add_lora(LoRA(rank=2, alpha=4.0, targets=("attention", "feed-forward")))
        for weight in model.adapters().values():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(3))
    found = []
    for on in (False, True):
        model.set_checkpointing(on)
        tokens = wan.noise(2, 5, wan.width).requires_grad_(True)
        first = loss_of(model, wan, with_tokens(wan.memory(2, 5), tokens))
        second = loss_of(model, wan, with_tokens(wan.memory(2, 5), tokens * 2), seed=8)
        model.zero_grad(set_to_none=True)
        (first + second).backward()
        found.append(clones(model) | {"tokens": tokens.grad})
    plain, saved = found
    assert plain.keys() == saved.keys()
    assert all(torch.equal(plain[name], saved[name]) for name in plain)
    assert all(bool(gradient.any()) for gradient in plain.values())


@pytest.mark.parametrize("attention", ["full", "isolated", "isolated-causal"])
def test_gradients_reach_every_token_and_adapter(wan: Any, attention: str) -> None:
    model = wan.small(attention=attention, memory_time=0.5)
    every = ("attention", "cross-attention", "feed-forward")
    model.add_lora(LoRA(rank=2, alpha=2.0, targets=every))
    for name, weight in model.adapters().items():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.1)
    tokens = wan.noise(2, 5, wan.width).requires_grad_(True)
    loss_of(model, wan, with_tokens(wan.memory(2, 5), tokens)).backward()
    assert bool((tokens.grad.abs().amax(-1) > 0).all())
    assert all(bool(weight.grad.any()) for weight in model.adapters().values())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@pytest.mark.slow
@given(st.lists(st.integers(0, 6), min_size=3, max_size=3), st.sampled_from(["full", "isolated"]))
@settings(max_examples=10, deadline=None)
def test_ragged_is_alone(wan: Any, lengths: list[int], attention: str) -> None:
    model = wan.small(attention=attention, memory_time=0.0, layers=3)
    memory, x, t = wan.memory(3, 6), wan.noise(3, 16, 2, 4, 4), torch.tensor([0.1, 0.5, 0.9])
    part, text = memory.parts[0], wan.text(3)
    valid = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    shown = valid[:, torch.randperm(6, generator=torch.Generator().manual_seed(1))]
    spoiled = part.tokens.masked_fill(~shown[..., None], float("nan"))
    ragged = Memory(parts=(attrs.evolve(part, tokens=spoiled, valid=shown),))
    with torch.no_grad():
        held = [ragged] if attention == "full" else [ragged, model.remember(ragged)]
        outs = [model.velocity(x, t, wan.frames(7, 2, 3), model.context(text, h)) for h in held]
        assert all(torch.equal(out, outs[0]) for out in outs)
        for i in range(3):
            real = Memory(parts=(part.select([i]).take(shown[i].nonzero()[None, :, 0]),))
            context = model.context(text.select([i]), real)
            alone = model.velocity(x[[i]], t[[i]], wan.frames(7, 2), context)
            assert float((outs[0][[i]] - alone).abs().max()) < 1e-5


def test_masks_are_announced_once_and_only_if_needed(wan: Any, caplog: Any) -> None:
    model, memory = wan.isolated(), wan.memory(2, 4)
    attention.announce_masks.cache_clear()
    part = memory.parts[0]
    valid = part.valid.clone()
    valid[0, 3] = False
    with caplog.at_level(logging.WARNING, logger=attention.__name__):
        model.remember(memory)
        assert not caplog.records
        for _ in range(2):
            model.remember(Memory(parts=(attrs.evolve(part, valid=valid),)))
    assert len(caplog.records) == 1 and "mask" in caplog.records[0].message


def outputs(model: TinyWanBackbone, wan: Any) -> list[Tensor]:
    with torch.no_grad():
        cache = model.remember(wan.memory(1, 4))
        context = model.context(wan.text(1), cache)
        x = wan.noise(1, 16, 2, 4, 4)
        velocity = model.velocity(x, torch.tensor([0.5]), wan.frames(4, 2), context)
    return [velocity, context.text.embeddings, *cache.keys, *cache.values]


@pytest.mark.parametrize("attention", ["isolated", "isolated-causal"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_sees_every_call(
    wan: Any, kind: str, attention: str, monkeypatch: Any
) -> None:
    numbers = {"attention": attention, "cache_block": 1}
    plain, onloads, onload = outputs(wan.isolated(**numbers), wan), [], ModuleGroup.onload_
    monkeypatch.setattr(ModuleGroup, "onload_", lambda self: (onloads.append(1), onload(self)))
    model, cpu = wan.isolated(**numbers), torch.device("cpu")
    groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **groups)
    assert all(map(torch.equal, outputs(model, wan), plain))
    for call in (
        lambda: model.remember(wan.memory(1, 2)),
        lambda: model.context(wan.text(1)),
    ):
        onloads.clear()
        call()
        assert onloads


def test_layerwise_casting_sees_every_call(wan: Any) -> None:
    model = wan.isolated()
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert model.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    rounded = wan.isolated()
    for name, weight in model.state_dict().items():
        rounded.state_dict()[name].copy_(weight)
    assert all(map(torch.equal, outputs(model, wan), outputs(rounded, wan)))


def test_bf16_runs(wan: Any) -> None:
    """With the parts in float32 that diffusers keeps there when it loads a model."""
    model = wan.isolated().bfloat16()
    for name, module in model.named_modules():
        if name.split(".")[-1] in ("time_embedder", "norm2"):
            module.float()
    exact = outputs(wan.isolated(), wan)[0]
    velocity = outputs(model, wan)[0]
    assert velocity.dtype == torch.bfloat16
    assert float((velocity.float() - exact).abs().max()) < 0.1 * float(exact.abs().max())


def test_nothing_is_kept_on_processors(wan: Any) -> None:
    model = wan.isolated()
    before = [dict(vars(p)) for p in model.attn_processors.values()]
    outputs(model, wan)
    assert [dict(vars(p)) for p in model.attn_processors.values()] == before
    assert model._cp_plan is None and model._no_split_modules == ["MemoryBlock"]
