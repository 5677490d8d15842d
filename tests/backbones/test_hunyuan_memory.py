"""Memory in HunyuanVideo: the cache, gradients, checkpointing, ragged batches, hooks (§3, §7.5)."""

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
from longtake.backbones.hunyuan.model import HunyuanBackbone
from longtake.core.interfaces.backbone import Backbone, Cache
from longtake.core.interfaces.spec import LoRA
from longtake.core.values.memory import Memory, Part

pytestmark = pytest.mark.slow  # the same laws as of Wan, in test_wan_memory

STEPS = (1.0, 0.2)
KINDS = ("full", "isolated", "isolated-causal")
MODELS: dict[Any, HunyuanBackbone] = {}


def kept(hunyuan: Any, **changes: Any) -> HunyuanBackbone:
    """A small model that no test changes."""
    key = tuple(sorted(changes.items()))
    if key not in MODELS:
        MODELS[key] = hunyuan.small(**changes)
    return MODELS[key]


def isolated(hunyuan: Any, attention: str = "isolated") -> HunyuanBackbone:
    return kept(hunyuan, attention=attention, memory_time=0.0, cache_block=2)


def with_tokens(memory: Memory, tokens: Tensor) -> Memory:
    return Memory(parts=(attrs.evolve(memory.parts[0], tokens=tokens),))


def apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


@pytest.mark.parametrize("attention", KINDS[1:])
@torch.no_grad()
def test_one_cache_serves_steps_branches_and_prompts(hunyuan: Any, attention: str) -> None:
    model, memory = isolated(hunyuan, attention), hunyuan.memory(2, 7)
    frames = torch.stack([hunyuan.frames(5, 2)[0], hunyuan.frames(90, 2)[0]])
    cache = model.remember(memory)
    for prompt in (hunyuan.text(2), hunyuan.text(2, seed=9, length=6), model.blank_text(2, 4)):
        held, made = model.context(prompt, cache), model.context(prompt, memory)
        for step in STEPS:
            x, t = hunyuan.noise(2, 16, 2, 5, 6, seed=int(step * 10)), torch.full((2,), step)
            velocity = model.velocity(x, t, frames, held)
            assert torch.equal(velocity, model.velocity(x, t, frames, made))


@torch.no_grad()
def test_isolated_keys_know_neither_prompt_nor_time_nor_guidance(hunyuan: Any) -> None:
    model, memory = isolated(hunyuan), hunyuan.memory(1, 5)
    one = model.remember(memory)
    other = hunyuan.small(attention="isolated", memory_time=0.0, guidance=1.0)
    context = other.context(hunyuan.text(1), memory)
    other.velocity(hunyuan.noise(1, 16, 2, 4, 4), torch.rand(1), hunyuan.frames(0, 2), context)
    two = other.remember(memory)
    assert all(map(torch.equal, one.keys + one.values, two.keys + two.values))
    assert len(one.keys) == 4 and one.keys[0].shape == (1, 5, 2, 16) and one.length == 5
    assert all(apart(a, b) > 1e-3 for a, b in zip(one.keys, one.keys[1:], strict=False))


@torch.no_grad()
def test_isolated_memory_sees_neither_targets_nor_text(hunyuan: Any) -> None:
    """Its keys in a run with targets are those of memory alone, in both kinds of blocks."""
    model, memory = isolated(hunyuan), hunyuan.memory(1, 5)
    seen: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda *x: seen.append(x[2][-1].key)) for b in blocks(model)]
    context = model.context(hunyuan.text(1), memory)
    model.velocity(hunyuan.noise(1, 16, 2, 4, 4), torch.rand(1), hunyuan.frames(0, 2), context)
    for hook in hooks:
        hook.remove()
    assert all(map(torch.equal, seen, model.remember(memory).keys))


def blocks(model: Any) -> list[Any]:
    return [*model.transformer_blocks, *model.single_transformer_blocks]


def test_the_last_block_makes_keys_only(hunyuan: Any) -> None:
    model, calls = hunyuan.isolated(), []
    for index, block in enumerate(blocks(model)):
        for name in ("attn.to_q", "attn.to_k", "ff" if index < 2 else "proj_mlp"):
            module = block.get_submodule(name)
            module.register_forward_hook(lambda *_, at=(index, name): calls.append(at))
    model.remember(hunyuan.memory(1, 3))
    assert {name for index, name in calls if index == 3} == {"attn.to_k"}
    assert {name for index, name in calls if index == 2} == {"attn.to_q", "attn.to_k", "proj_mlp"}


def test_what_a_cache_refuses(hunyuan: Any) -> None:
    full, memory = kept(hunyuan), hunyuan.memory(1, 3)
    cache = isolated(hunyuan).remember(memory)
    with pytest.raises(ValueError, match="full attention has no cache"):
        full.remember(memory)
    with pytest.raises(ValueError, match="isolated-causal"):
        isolated(hunyuan).remember(memory, cache)
    with pytest.raises(ValueError, match="not a cache"):
        full.context(hunyuan.text(1), cache)


def moments(hunyuan: Any, count: int, batch: int = 1) -> Memory:
    """Two tokens at each latent 0 … count − 1."""
    tokens = hunyuan.noise(batch, 60, hunyuan.width)[:, : 2 * count]
    places = torch.zeros(batch, 2 * count, 3, dtype=torch.float64)
    places[..., 0], places[..., 2] = (
        torch.arange(count).repeat_interleave(2),
        torch.arange(2).repeat(count),
    )
    part = Part(
        name="test", tokens=tokens, positions=places, extents=torch.ones_like(places),
        valid=torch.ones(batch, 2 * count, dtype=torch.bool),
    )  # fmt: skip
    return Memory(parts=(part,))


def cut(memory: Memory, first: int, last: int) -> Memory:
    part = memory.parts[0]
    order = torch.arange(2 * first, 2 * last).expand(part.valid.shape[0], -1)
    return Memory(parts=(part.take(order),))


@given(st.integers(1, 9), st.lists(st.integers(0, 9), max_size=3))
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_appending_is_the_whole(hunyuan: Any, count: int, cuts: list[int]) -> None:
    model, memory = isolated(hunyuan, "isolated-causal"), moments(hunyuan, count, batch=2)
    cache, done = None, 0
    for end in [*sorted(min(c, count) for c in cuts), count]:
        cache, done = model.remember(cut(memory, done, end), cache), end
    whole = model.remember(memory)
    assert cache is not None and cache.length == whole.length
    both = zip(cache.keys + cache.values, whole.keys + whole.values, strict=True)
    assert max(apart(one, two) for one, two in both) < 1e-5
    x, t, frames = hunyuan.noise(2, 16, 1, 4, 4), torch.rand(2), hunyuan.frames(20, 1, 2)
    outs = [
        model.velocity(x, t, frames, model.context(hunyuan.text(2), m)) for m in (cache, memory)
    ]
    assert apart(*outs) < 1e-5


@torch.no_grad()
def test_later_blocks_never_change_keys(hunyuan: Any) -> None:
    model, memory = isolated(hunyuan, "isolated-causal"), moments(hunyuan, 7)
    spoiled = memory.parts[0].tokens.clone()
    spoiled[:, 6:] += 1.0  # latents 3 and up: blocks of 2 are 0, 1 2, 3 4, 5 6
    one, two = model.remember(memory), model.remember(with_tokens(memory, spoiled))
    for a, b in zip(one.keys + one.values, two.keys + two.values, strict=True):
        assert torch.equal(a[:, :6], b[:, :6]) and not torch.equal(a[:, 6:], b[:, 6:])
    wide = isolated(hunyuan).remember(with_tokens(memory, spoiled))
    assert not torch.equal(wide.keys[-1][:, :6], isolated(hunyuan).remember(memory).keys[-1][:, :6])


def loss_of(model: HunyuanBackbone, hunyuan: Any, memory: Memory | Cache, seed: int = 1) -> Tensor:
    text = hunyuan.text(2, length=5)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    context = model.context(attrs.evolve(text, mask=mask), memory)
    x = hunyuan.noise(2, 16, 2, 4, 6, seed=seed)
    out = model.velocity(x, torch.tensor([0.2, 0.7]), hunyuan.frames(4, 2, 2), context)
    return out.square().mean()


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_checkpointing_keeps_gradients(hunyuan: Any, attention: str, lora: bool) -> None:
    """Two forwards before one backward: what per-call state on processors would spoil."""
    model, found = hunyuan.small(attention=attention, memory_time=0.0), []
    if lora:
        model.add_lora(LoRA(rank=2, alpha=4.0, targets=("attention", "feed-forward")))
        for weight in model.adapters().values():
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(3))
    for on in (False, True):
        model.set_checkpointing(on)
        tokens = hunyuan.noise(2, 5, hunyuan.width).requires_grad_(True)
        first = loss_of(model, hunyuan, with_tokens(hunyuan.memory(2, 5), tokens))
        second = loss_of(model, hunyuan, with_tokens(hunyuan.memory(2, 5), tokens * 2), seed=8)
        model.zero_grad(set_to_none=True)
        (first + second).backward()
        found.append({**gradients(model), "tokens": tokens.grad})
    plain, saved = found
    assert plain.keys() == saved.keys()
    assert all(torch.equal(plain[name], saved[name]) for name in plain)
    assert all(bool(gradient.any()) for gradient in plain.values())


def gradients(model: Backbone) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", KINDS)
def test_gradients_reach_every_token_and_adapter(hunyuan: Any, attention: str) -> None:
    model = hunyuan.small(attention=attention, memory_time=0.5)
    model.add_lora(
        LoRA(rank=2, alpha=2.0, targets=("attention", "cross-attention", "feed-forward"))
    )
    for name, weight in model.adapters().items():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.1)
    tokens = hunyuan.noise(2, 5, hunyuan.width).requires_grad_(True)
    loss_of(model, hunyuan, with_tokens(hunyuan.memory(2, 5), tokens)).backward()
    assert tokens.grad is not None and bool((tokens.grad.abs().amax(-1) > 0).all())
    assert all(bool(weight.grad.any()) for weight in model.adapters().values())
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


@given(st.lists(st.integers(0, 6), min_size=3, max_size=3), st.sampled_from(KINDS))
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_ragged_is_alone(hunyuan: Any, lengths: list[int], attention: str) -> None:
    model = kept(hunyuan, attention=attention, memory_time=0.0)
    memory, x, t = hunyuan.memory(3, 6), hunyuan.noise(3, 16, 2, 4, 4), torch.rand(3)
    part, text = memory.parts[0], hunyuan.text(3, length=6)
    words = torch.arange(6)[None] < torch.tensor([2, 6, 3])[:, None]
    text = attrs.evolve(text, mask=words)
    shown = torch.arange(6)[None] < torch.tensor(lengths)[:, None]
    shown = shown[:, torch.randperm(6, generator=torch.Generator().manual_seed(1))]
    spoiled = part.tokens.masked_fill(~shown[..., None], float("nan"))
    ragged = Memory(parts=(attrs.evolve(part, tokens=spoiled, valid=shown),))
    held = [ragged] if attention == "full" else [ragged, model.remember(ragged)]
    frames = hunyuan.frames(7, 2, 3)
    outs = [model.velocity(x, t, frames, model.context(text, h)) for h in held]
    assert all(torch.equal(out, outs[0]) for out in outs)
    for i in range(3):
        real = Memory(parts=(part.select([i]).take(shown[i].nonzero()[None, :, 0]),))
        context = model.context(text.select([i]), real)
        alone = model.velocity(x[[i]], t[[i]], frames[[i]], context)
        assert apart(outs[0][[i]], alone) < 1e-5


@torch.no_grad()
def test_no_mask_is_ever_made_and_raggedness_is_announced_once(
    hunyuan: Any, caplog: Any, monkeypatch: Any
) -> None:
    """Flash and sage backends refuse masks."""
    masks, dispatch = [], attention.dispatch_attention_fn

    def noted(*args: Any, attn_mask: Any, **rest: Any) -> Any:
        masks.append(attn_mask)
        return dispatch(*args, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(attention, "dispatch_attention_fn", noted)
    attention.announce_single_samples.cache_clear()
    model, memory = isolated(hunyuan), hunyuan.memory(2, 4)
    valid = memory.parts[0].valid.clone()
    valid[0, 3] = False
    with caplog.at_level(logging.INFO, logger=attention.__name__):
        model.remember(memory)
        assert not caplog.records
        for _ in range(2):
            model.remember(Memory(parts=(attrs.evolve(memory.parts[0], valid=valid),)))
        loss_of(model, hunyuan, memory)
    assert [record.message[:7] for record in caplog.records] == ["prompts"]
    assert masks and set(masks) == {None}


@torch.no_grad()
def test_the_users_attention_backend_is_used(hunyuan: Any, monkeypatch: Any) -> None:
    backends, dispatch = [], attention.dispatch_attention_fn

    def noted(*args: Any, backend: Any, **rest: Any) -> Any:
        backends.append(backend)
        return dispatch(*args, backend=backend, **rest)

    monkeypatch.setattr(attention, "dispatch_attention_fn", noted)
    model = hunyuan.isolated()
    plain = outputs(model, hunyuan)
    for block in blocks(model):  # as `set_attention_backend`, which also sets the program's own
        block.attn.processor._attention_backend = "_native_math"
    assert set(backends) == {None}
    backends.clear()
    assert apart(outputs(model, hunyuan)[0], plain[0]) < 1e-5
    assert set(backends) == {"_native_math"}


@torch.no_grad()
def outputs(model: HunyuanBackbone, hunyuan: Any) -> list[Tensor]:
    cache = model.remember(hunyuan.memory(1, 4))
    context = model.context(hunyuan.text(1), cache)
    x = hunyuan.noise(1, 16, 2, 4, 4)
    velocity = model.velocity(x, torch.tensor([0.5]), hunyuan.frames(4, 2), context)
    return [velocity, context.text.embeddings, *cache.keys, *cache.values]


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offload_sees_every_call(hunyuan: Any, kind: str, monkeypatch: Any) -> None:
    plain, onloads, onload = outputs(isolated(hunyuan), hunyuan), [], ModuleGroup.onload_
    monkeypatch.setattr(ModuleGroup, "onload_", lambda self: (onloads.append(1), onload(self)))
    model, cpu = hunyuan.isolated(), torch.device("cpu")
    groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=kind, **groups)
    assert all(map(torch.equal, outputs(model, hunyuan), plain))
    onloads.clear()
    model.remember(hunyuan.memory(1, 2))
    assert onloads


def test_layerwise_casting_sees_every_call(hunyuan: Any) -> None:
    model = hunyuan.isolated()
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    assert model.transformer_blocks[0].attn.to_q.weight.dtype == torch.bfloat16
    rounded = hunyuan.isolated()
    for name, weight in model.state_dict().items():
        rounded.state_dict()[name].copy_(weight)
    assert all(map(torch.equal, outputs(model, hunyuan), outputs(rounded, hunyuan)))


@pytest.mark.parametrize("attention", KINDS)
@torch.no_grad()
def test_bf16_runs(hunyuan: Any, attention: str) -> None:
    exact, rough = (
        hunyuan.small(dtype, attention=attention, memory_time=0.0)
        for dtype in (torch.float32, torch.bfloat16)
    )
    x, t = hunyuan.noise(2, 16, 2, 4, 4), torch.rand(2)
    one, two = (
        m.velocity(x, t, hunyuan.frames(9, 2, 2), m.context(hunyuan.text(2), hunyuan.memory(2, 5)))
        for m in (exact, rough)
    )
    assert two.dtype == torch.bfloat16
    assert apart(one, two.float()) < 0.1 * float(one.abs().max())


def test_nothing_is_kept_on_processors(hunyuan: Any) -> None:
    model = hunyuan.isolated()
    before = [dict(vars(p)) for p in model.attn_processors.values()]
    outputs(model, hunyuan)
    assert [dict(vars(p)) for p in model.attn_processors.values()] == before
    assert model._cp_plan is None and model._no_split_modules == ["DualBlock", "SingleBlock"]


def with_features(memory: Memory, values: Tensor) -> Memory:
    return Memory(parts=(attrs.evolve(memory.parts[0], features={"look": values}),))


@pytest.mark.parametrize("attention", KINDS[:2])
def test_an_enhancer_starts_at_nothing_and_reads_features(hunyuan: Any, attention: str) -> None:
    model = hunyuan.small(attention=attention, memory_time=0.0)
    memory, looks = hunyuan.memory(2, 5), hunyuan.noise(2, 5, 6)
    plain = loss_of(model, hunyuan, memory)
    model.add_enhancer({"test.look": 6})
    found = [n for n in model.adapters() if ".to_out." in n]
    assert len(found) == 4  # one a block
    assert torch.equal(loss_of(model, hunyuan, with_features(memory, looks)), plain)
    for name in found:
        torch.nn.init.normal_(model.adapters()[name], std=0.1)
    outs = [loss_of(model, hunyuan, with_features(memory, looks * s)) for s in (1.0, -1.0)]
    assert not torch.equal(*outs) and not torch.equal(outs[0], plain)
    outs[0].backward()
    assert all(bool(p.grad.any()) for p in model.adapters().values())
    if attention == "isolated":
        cache = model.remember(with_features(memory, looks))
        assert torch.equal(loss_of(model, hunyuan, cache), outs[0])
