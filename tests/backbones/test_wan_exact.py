"""Design §7.1 and §7.2: Wan with memory is diffusers' Wan wherever the two mean the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.backbones import hooks
from longtake.backbones.blocks.rotary import rotary_table
from longtake.backbones.wan.block import rotary_axes
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.core.contract.backbone import check_backbone
from longtake.core.interfaces.backbone import target_positions
from longtake.core.interfaces.compressor import pad_to
from longtake.core.values.memory import Memory, Part

DTYPES = (torch.float32, torch.float64)
TIMES = ("sample", "token")
QUICK = settings(max_examples=8, deadline=None)


def by_token(t: Tensor, tokens: int) -> Tensor:
    return t[:, None].expand(-1, tokens)


def reference(model: Any, video: Tensor, steps: Tensor, text: Tensor, time: str) -> Tensor:
    """diffusers' output, timesteps shaped as its pipeline does for the 14B or the 5B."""
    padded = pad_to(video, 2, 2)
    tokens = padded[0, 0].numel() // 4
    with torch.no_grad():
        out = model(padded, by_token(steps, tokens) if time == "token" else steps, text).sample
    return out[..., : video.shape[-2], : video.shape[-1]]


@given(
    head=st.sampled_from([6, 12, 20, 64, 128]),
    size=st.tuples(*[st.integers(1, 9)] * 3),
    first=st.integers(0, 900),
)
@QUICK
def test_rotary_at_whole_places_is_diffusers_table(
    head: int, size: tuple[int, int, int], first: int
) -> None:
    frames, rows, columns = size
    table = WanRotaryPosEmbed(head, (1, 2, 2), 1024)
    cos, sin = table(torch.empty(1, 1, first + frames, rows * 2, columns * 2))
    places = target_positions(torch.arange(first, first + frames)[None], rows, columns)
    ours = rotary_table(rotary_axes(head), places)
    cells = rows * columns
    assert torch.equal(ours.cos, cos[:, first * cells :, :, 0::2])
    assert torch.equal(ours.sin, sin[:, first * cells :, :, 1::2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("size", [(1, 2, 2), (3, 6, 8), (2, 5, 7), (4, 3, 9)])
def test_no_memory_is_diffusers_to_the_bit(
    wan: Any, time: str, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    model = wan.small(dtype, time=time)
    video, text, t = wan.noise(2, 16, *size).to(dtype), wan.text(2).to("cpu", dtype), torch.rand(2)
    with torch.no_grad():
        context = model.context(text)
        ours = model.velocity(video, t, wan.frames(0, size[0], 2), context)
    assert torch.equal(ours, reference(wan.twin(model), video, t * 1000, text.embeddings, time))


def test_bf16_autocast_is_diffusers_to_the_bit(wan: Any) -> None:
    model, video, text = wan.small(), wan.noise(1, 16, 2, 4, 6), wan.text(1)
    t = torch.tensor([0.4])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        ours = model.velocity(video, t, wan.frames(0, 2), model.context(text))
        theirs = reference(wan.twin(model), video, t * 1000, text.embeddings, "sample")
    assert torch.equal(ours, theirs)


def patches(model: TinyWanBackbone, clean: Tensor, frames: Tensor) -> Memory:
    """Memory that is the DiT's own tokens of clean latents, at their places."""
    grid = model.fit().tokens(clean)
    places = target_positions(frames.expand(clean.shape[0], -1), *grid.shape[2:4])
    tokens = grid.flatten(1, 3)
    valid = torch.ones(tokens.shape[:2], dtype=torch.bool)
    part = Part(
        name="clean",
        tokens=tokens,
        positions=places,
        extents=torch.ones_like(places),
        valid=valid,
    )
    return Memory(parts=(part,))


@pytest.mark.slow
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize("shown", [[0, 1, 2, 3, 4], [0, 1, 2, 7, 9], [3, 4, 5, 6, 40]])
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_patches_as_memory_are_the_longer_video(
    wan: Any, time: str, shown: list[int], dtype: torch.dtype, gap: float
) -> None:
    model = wan.small(dtype, time=time)
    video, text = wan.noise(2, 16, 5, 5, 6).to(dtype), wan.text(2).to("cpu", dtype)
    t, frames = torch.tensor([0.3, 0.9]), torch.tensor(shown)
    with torch.no_grad():
        memory = patches(model, video[:, :, :3], frames[None, :3])
        context = model.context(text, memory)
        ours = model.velocity(video[:, :, 3:], t, frames[3:].expand(2, -1), context)
    other = wan.twin(model)
    wan.show_rows(other, shown)
    theirs = reference(other, video, t * 1000, text.embeddings, time)[:, :, 3:]
    assert float((ours - theirs).abs().max()) < gap


@pytest.mark.slow
@pytest.mark.parametrize("own", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("shown", [[0, 1, 2, 3, 4], [2, 3, 9, 12, 40]])
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_memory_at_its_own_time_is_time_by_token(
    wan: Any, own: float, shown: list[int], dtype: torch.dtype, gap: float
) -> None:
    """diffusers' `[B, N]` call, with the clean frames at their own time and by frame after them."""
    model = wan.small(dtype, time="token", memory_time=own)
    video, text, frames = wan.noise(2, 16, 5, 5, 6).to(dtype), wan.text(2), torch.tensor(shown)
    t = torch.tensor([[0.3, 0.5], [0.9, 0.9]])
    with torch.no_grad():
        memory = patches(model, video[:, :, :3], frames[None, :3])
        context = model.context(text, memory)
        ours = model.velocity(video[:, :, 3:], t, frames[3:].expand(2, -1), context)
        other, padded = wan.twin(model), pad_to(video, 2, 2)
        wan.show_rows(other, shown)
        by_frame = torch.cat([torch.full((2, 3), own), t], dim=1) * 1000
        steps = by_frame[:, :, None].expand(-1, -1, 9).flatten(1)
        theirs = other(padded, steps, text.embeddings.to(dtype)).sample[:, :, 3:, :5, :6]
    assert float((ours - theirs).abs().max()) < gap


@pytest.mark.parametrize("time", TIMES)
def test_bf16_weights_are_diffusers_to_the_bit(wan: Any, time: str) -> None:
    """With the parts in float32 that diffusers keeps there when it loads a model."""
    model, video, text = _bf16(wan.small(time=time)), wan.noise(1, 16, 2, 4, 6), wan.text(1)
    video, prompt, t = video.bfloat16(), text.to("cpu", torch.bfloat16), torch.tensor([0.4])
    twin = wan.twin(wan.small(time=time))
    twin.load_state_dict(model.state_dict(), assign=True)
    with torch.no_grad():
        ours = model.velocity(video, t, wan.frames(0, 2), model.context(prompt))
        theirs = reference(twin, video, t * 1000, prompt.embeddings, time)
        assert ours.dtype == torch.bfloat16 and torch.equal(ours, theirs)
        memory = patches(model, video, torch.arange(2)[None])
        seen = model.velocity(video, t, wan.frames(2, 2), model.context(prompt, memory))
        longer = reference(
            twin, torch.cat([video, video], dim=2), t * 1000, prompt.embeddings, time
        )
    gap = (seen - longer[:, :, 2:]).float().abs().max()
    assert float(gap) < 0.02 * float(longer.float().abs().max())


def _bf16(model: TinyWanBackbone) -> TinyWanBackbone:
    kept = tuple(model._keep_in_fp32_modules)
    for name, weight in model.named_parameters():
        if not any(part in name for part in kept):
            weight.data = weight.data.bfloat16()
    return model


def test_time_by_frame_is_time_by_token(wan: Any) -> None:
    model = wan.small(time="token")
    video, text, t = wan.noise(1, 16, 3, 4, 4), wan.text(1), torch.tensor([[0.1, 0.5, 1.0]])
    with torch.no_grad():
        ours = model.velocity(video, t, wan.frames(0, 3), model.context(text))
        steps = (t * 1000)[:, :, None].expand(-1, -1, 4).flatten(1)
        theirs = wan.twin(model)(video, steps, text.embeddings).sample
    assert torch.equal(ours, theirs)


def test_time_by_frame_needs_time_by_token(wan: Any, unchecked: None) -> None:
    model, video, t = wan.small(), wan.noise(1, 16, 3, 4, 4), torch.rand(1, 3)
    with pytest.raises(ValueError, match="one time a sample"):
        model.velocity(video, t, wan.frames(0, 3), model.context(wan.text(1)))
    token = wan.small(time="token")
    with pytest.raises(ValueError, match="set memory_time"):
        token.velocity(video, t, wan.frames(0, 3), token.context(wan.text(1), wan.memory(1, 2)))
    with pytest.raises(ValueError, match="frames are"):
        token.velocity(video, t, wan.frames(0, 2), token.context(wan.text(1)))


@pytest.mark.slow
@pytest.mark.parametrize("time", TIMES)
@pytest.mark.parametrize(
    "attention",
    [
        "full",
        pytest.param("isolated", marks=pytest.mark.slow),
        pytest.param("isolated-causal", marks=pytest.mark.slow),
    ],
)
def test_contract(wan: Any, attention: str, time: str) -> None:
    check_backbone(wan.small(attention=attention, memory_time=0.25, time=time))


@pytest.mark.slow
def test_contract_with_shared_time(wan: Any) -> None:
    check_backbone(wan.small(layers=1))


def test_contract_finds_a_backbone_that_forgets(wan: Any, monkeypatch: Any) -> None:
    model, context = wan.small(), TinyWanBackbone.context
    monkeypatch.setattr(
        TinyWanBackbone, "context", lambda self, text, memory=None: context(self, text)
    )
    with pytest.raises(AssertionError, match="memory does not change"):
        check_backbone(model)


@pytest.mark.slow
def test_contract_finds_a_backbone_that_appends_in_place(wan: Any, monkeypatch: Any) -> None:
    model = wan.small(attention="isolated-causal", memory_time=0.0)
    remember = TinyWanBackbone.remember

    def spoil(self: TinyWanBackbone, memory: Memory, cache: Any = None) -> Any:
        if cache is not None:
            cache.keys[0].mul_(2)
        return remember(self, memory, cache)

    monkeypatch.setattr(TinyWanBackbone, "remember", spoil)
    with pytest.raises(AssertionError, match="was appended to"):
        check_backbone(model)


@pytest.mark.slow
def test_contract_finds_a_backbone_that_ignores_features(wan: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(TinyWanBackbone, "_features", lambda self, memory: {})
    with pytest.raises(AssertionError, match="features do not change the velocity"):
        check_backbone(wan.small())


def test_seed_is_all_that_matters(wan: Any) -> None:
    before = torch.get_rng_state()
    one, two = wan.small(), wan.small()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(x, two.state_dict()[n]) for n, x in one.state_dict().items())
    other = TinyWanBackbone.load(wan.spec(), seed=1).state_dict()
    assert not torch.equal(one.proj_out.weight, other["proj_out.weight"])


def test_published_shapes() -> None:
    shapes = hooks.longtake_geometries()
    assert {n: (g.channels, g.width, g.blocks, g.fps) for n, g in shapes.items()} == {
        "wan21-1.3b": (16, 1536, 30, 16.0),
        "wan21-14b": (16, 5120, 40, 16.0),
        "wan22-5b": (48, 3072, 30, 24.0),
        "wan22-14b": (16, 5120, 40, 16.0),
        "hunyuan": (16, 3072, 60, 24.0),
    }
    assert hooks.longtake_backbones()[0].load() is TinyWanBackbone
