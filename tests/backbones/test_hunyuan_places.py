"""Where HunyuanVideo counts time from: the beginning of the video, or the first target."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from longtake.backbones.blocks.rotary import rotary_table
from longtake.backbones.hunyuan.model import HunyuanBackbone
from longtake.core.config import from_json, to_json
from longtake.core.contract.backbone import check_backbone
from longtake.core.interfaces.backbone import Backbone, Cache, target_positions
from longtake.core.interfaces.spec import BackboneSpec
from longtake.core.values.grid import MemoryLimit
from longtake.core.values.memory import Memory

KINDS = ("full", "isolated", "isolated-causal")
LIMITS = pytest.mark.parametrize(
    ("dtype", "gap"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"]
)
MODELS: dict[Any, HunyuanBackbone] = {}


def model_of(
    hunyuan: Any, places: str = "relative", dtype: torch.dtype = torch.float32, **changes: Any
) -> HunyuanBackbone:
    """A small model that no test changes."""
    key = (places, dtype, *sorted(changes.items()))
    if key not in MODELS:
        numbers = {"memory_time": 0.0, "cache_block": 4, "places": places}
        MODELS[key] = hunyuan.small(dtype, **(numbers | changes))
    return MODELS[key]


def moved(memory: Memory, latents: int) -> Memory:
    parts = []
    for part in memory.parts:
        places = part.positions.clone()
        places[..., 0] += latents
        parts.append(attrs.evolve(part, positions=places))
    return attrs.evolve(memory, parts=tuple(parts))


def whole(
    hunyuan: Any, batch: int = 2, latents: int = 9, dtype: torch.dtype = torch.float32
) -> Memory:
    """Two tokens at each latent 0 … n − 1, so that a cache can be appended to."""
    memory = hunyuan.memory(batch, 2 * latents)
    (part,) = memory.parts
    places = part.positions.clone()
    places[..., 0] = torch.arange(latents).repeat_interleave(2)
    return Memory(parts=(attrs.evolve(part, positions=places, tokens=part.tokens.to(dtype)),))


def between(memory: Memory, first: int, last: int) -> Memory:
    (part,) = memory.parts
    kept = (part.positions[..., 0] >= first) & (part.positions[..., 0] < last)
    return Memory(parts=(part.keep(kept),))


@torch.no_grad()
def velocity(
    hunyuan: Any, model: HunyuanBackbone, held: Memory | Cache | None, first: int,
    seed: int = 5, t: float = 0.4,
) -> Tensor:  # fmt: skip
    text = hunyuan.text(2, seed=seed).to("cpu", model.dtype)
    noisy = hunyuan.noise(2, 16, 2, 4, 6, seed=seed).to(model.dtype)
    frames = torch.tensor([[0, 1], [0, 3]]) + first
    return model.velocity(noisy, torch.full((2,), t), frames, model.context(text, held))


def far(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max())


@torch.no_grad()
def test_without_memory_a_late_segment_is_diffusers_video_to_the_bit(hunyuan: Any) -> None:
    text, video = hunyuan.text(1), hunyuan.noise(1, 16, 3, 4, 6)
    t, frames = torch.tensor([0.3]), hunyuan.frames(100, 3)
    ours = {}
    for places in ("absolute", "relative"):
        model = model_of(hunyuan, places)
        ours[places] = model.velocity(video, t, frames, model.context(text))
    reference = hunyuan.reference(hunyuan.twin(model_of(hunyuan)), video, t, text)
    assert torch.equal(ours["relative"], reference)
    assert far(ours["absolute"], reference) > 1e-3, "text reads other places"


@pytest.mark.slow
@pytest.mark.parametrize("attention", KINDS)
def test_a_take_that_grew_is_as_one_that_did_not(hunyuan: Any, attention: str) -> None:
    """The same past and the same targets, later in the video."""
    memory = whole(hunyuan)
    for places, lower, upper in (("relative", 0.0, 1e-5), ("absolute", 1e-3, 10.0)):
        model = model_of(hunyuan, places, attention=attention)
        near = velocity(hunyuan, model, memory, 9)
        late = velocity(hunyuan, model, moved(memory, 400), 409)
        assert lower <= far(near, late) < upper, places
    if attention == "full":
        model = model_of(hunyuan)
        late = velocity(hunyuan, model, moved(memory, 400), 409)
        assert torch.equal(velocity(hunyuan, model, memory, 9), late)
    model = model_of(hunyuan, attention=attention)
    closer = far(velocity(hunyuan, model, memory, 9), velocity(hunyuan, model, memory, 12))
    assert closer > 1e-4, "how long ago it was still counts"


@pytest.mark.parametrize("attention", KINDS)
def test_where_the_first_target_is_the_first_frame_both_are_one(
    hunyuan: Any, attention: str
) -> None:
    memory = moved(whole(hunyuan), 4)
    one, two = (
        velocity(hunyuan, model_of(hunyuan, places, attention=attention), memory, 0)
        for places in ("absolute", "relative")
    )
    assert torch.equal(one, two)


class _PlacedRope(nn.Module):
    """diffusers' table at any times, such as those before the first target."""

    def __init__(self, model: HunyuanBackbone, times: list[int]) -> None:
        super().__init__()
        self.axes, self.times = model._rotary_axes, torch.tensor([times])

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = latents.shape[3] // 2, latents.shape[4] // 2
        table = rotary_table(self.axes, target_positions(self.times, rows, columns))
        cos, sin = (x[0, :, 0].repeat_interleave(2, dim=-1) for x in table)
        return cos, sin


@LIMITS
@pytest.mark.parametrize("times", [[-3, -2, -1, 0, 1], [-9, -3, 2, 0, 4]])
def test_patches_as_memory_are_a_video_whose_time_begins_with_the_targets(
    hunyuan: Any, times: list[int], dtype: torch.dtype, gap: float
) -> None:
    model = model_of(hunyuan, dtype=dtype, memory_time=None)
    video, text = hunyuan.noise(2, 16, 5, 4, 6).to(dtype), hunyuan.text(2).to("cpu", dtype)
    t, frames = torch.tensor([0.3, 0.9]), torch.tensor(times) + 57
    memory = hunyuan.patches(model, video[:, :, :3], frames[None, :3])
    other = hunyuan.twin(model)
    other.rope = _PlacedRope(model, times)
    with torch.no_grad():
        context = model.context(text, memory)
        ours = model.velocity(video[:, :, 3:], t, frames[None, 3:].expand(2, -1), context)
    assert far(ours, hunyuan.reference(other, video, t, text)[:, :, 3:]) < gap


@pytest.mark.slow
@pytest.mark.parametrize("rotary", ["centre", "averaged"])
@pytest.mark.parametrize("attention", KINDS[1:])
@torch.no_grad()
def test_one_cache_serves_steps_prompts_and_places_to_the_bit(
    hunyuan: Any, attention: str, rotary: str
) -> None:
    model, memory = model_of(hunyuan, attention=attention, rotary=rotary), whole(hunyuan)
    wide = memory.parts[0].extents.clone()
    wide[..., 1:] = 2.0
    memory = Memory(parts=(attrs.evolve(memory.parts[0], extents=wide),))
    cache = model.remember(memory)
    for first, seed, t in ((9, 5, 1.0), (9, 5, 0.2), (9, 8, 0.6), (30, 5, 0.6)):
        held, made = (velocity(hunyuan, model, m, first, seed, t) for m in (cache, memory))
        assert torch.equal(held, made)
    absolute = model_of(hunyuan, "absolute", attention=attention, rotary=rotary).remember(memory)
    assert torch.equal(cache.values[-1], absolute.values[-1]), "memory reads itself alike"
    assert far(cache.keys[0], absolute.keys[0]) > 1e-2, "its keys are not rotated"
    assert torch.equal(model.remember(moved(memory, 50)).keys[0], cache.keys[0])


@LIMITS
@torch.no_grad()
def test_appending_is_the_whole(hunyuan: Any, dtype: torch.dtype, gap: float) -> None:
    model = model_of(hunyuan, dtype=dtype, attention="isolated-causal")
    memory, ends = whole(hunyuan, dtype=dtype), [0, 1, 3, 6, 9]
    cache = None
    for first, last in zip(ends, ends[1:], strict=False):
        cache = model.remember(between(memory, first, last), cache)
    assert cache is not None
    grown = velocity(hunyuan, model, cache, 9)
    assert far(grown, velocity(hunyuan, model, memory, 9)) < gap
    kept = cache.drop_oldest(MemoryLimit(block=4, latents=4))
    assert kept.length == 8 and torch.equal(kept.keys[1], cache.keys[1][:, -8:])
    assert far(velocity(hunyuan, model, kept, 9), grown) > 1e-4


@pytest.mark.parametrize("attention", KINDS)
def test_checkpointing_keeps_gradients(hunyuan: Any, attention: str) -> None:
    model = hunyuan.small(attention=attention, memory_time=0.0, cache_block=4, places="relative")
    grads = []
    for on in (False, True):
        model.set_checkpointing(on)
        memory = whole(hunyuan)
        tokens = memory.parts[0].tokens.clone().requires_grad_(True)
        held = Memory(parts=(attrs.evolve(memory.parts[0], tokens=tokens),))
        context = model.context(hunyuan.text(2), held)
        frames, x = torch.tensor([[9, 10], [9, 12]]), hunyuan.noise(2, 16, 2, 4, 6)
        model.velocity(x, torch.full((2,), 0.5), frames, context).square().mean().backward()
        grads.append(tokens.grad)
    assert torch.equal(*grads) and bool((grads[0].abs().amax(-1) > 0).all())


@torch.no_grad()
def test_ragged_is_alone(hunyuan: Any) -> None:
    for attention in KINDS:
        model, memory = model_of(hunyuan, attention=attention), whole(hunyuan)
        (part,) = memory.parts
        short = torch.arange(18)[None] < torch.tensor([18, 6])[:, None]
        places = part.positions.masked_fill(~short[..., None], torch.nan)
        ragged = Memory(parts=(attrs.evolve(part, valid=short, positions=places),))
        ours = velocity(hunyuan, model, ragged, 9)
        assert far(ours[:1], velocity(hunyuan, model, memory, 9)[:1]) < 1e-5
        assert far(ours[1:], velocity(hunyuan, model, between(memory, 0, 3), 9)[1:]) < 1e-5
        empty = velocity(hunyuan, model, Memory(), 9)
        assert far(ours, empty) > 1e-4
        if model.caches:
            nothing = model.remember(Memory())
            assert torch.equal(velocity(hunyuan, model, nothing, 9), empty)
            assert far(velocity(hunyuan, model, model.remember(ragged), 9), ours) < 1e-5


@pytest.mark.parametrize("attention", [pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_contract(hunyuan: Any, attention: str) -> None:
    model: Backbone = hunyuan.small(attention=attention, memory_time=0.25, places="relative")
    check_backbone(model)


def test_it_is_in_the_spec_and_absolute_unless_said(hunyuan: Any) -> None:
    spec = hunyuan.spec()
    assert spec.places == "absolute" and to_json(spec)["places"] == "absolute"
    assert from_json({**to_json(spec), "places": "relative"}, BackboneSpec).places == "relative"
    with pytest.raises(ValueError, match="absolute"):
        hunyuan.spec(places="here")
