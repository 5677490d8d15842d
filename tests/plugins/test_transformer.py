"""The transformer encoder: exact streaming, causal windows, rotary differences, step 0."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import sample_fit
from longtake.core.values.grid import Rate, Size3
from longtake.plugins.compressors.specs import Conv, Transformer
from longtake.plugins.compressors.transformer import TransformerCompressor, rotated, rotation

from .streaming import (
    built,
    check_chunking,
    check_ragged,
    close,
    history_for,
    rates,
    sizes,
    streamed,
)

TINY = Transformer(rate=Rate.parse("2x2x2"), layers=2, heads=2, head_width=6, window=2, ffn=8)
QUICK = settings(max_examples=15, deadline=None)


@st.composite
def specs(draw: st.DrawFn) -> Transformer:
    lr, hr = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    return attrs.evolve(
        TINY,
        rate=draw(rates),
        rounding=draw(st.sampled_from(["ceil", "whole"])),
        layers=draw(st.integers(1, 2)),
        window=draw(st.integers(1, 3)),
        features=hr and draw(st.booleans()),
        lr=lr,
        hr=hr,
    )


@pytest.mark.slow
@QUICK
@given(specs(), sizes, st.data())
def test_any_chunking_gives_the_memory_of_the_whole(
    spec: Transformer, size: Size3, data: st.DataObject
) -> None:
    check_chunking(spec, history_for(spec, size), data)


@QUICK
@given(specs(), sizes, st.data())
def test_each_sample_of_a_ragged_batch_is_as_alone(
    spec: Transformer, size: Size3, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, size.time), min_size=2, max_size=3))
    check_ragged(spec, history_for(spec, size, len(lengths)), lengths)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"layers": 1, "features": True}, marks=pytest.mark.slow),
        pytest.param({"rate": Rate.parse("4x1x8"), "window": 3}, marks=pytest.mark.slow),
        pytest.param({"rate": Rate.parse("1x1x1"), "lr": False}, marks=pytest.mark.slow),
        {"hr": False},
    ],
)
def test_contract(changes: dict[str, object]) -> None:
    check_compressor(TransformerCompressor, attrs.evolve(TINY, **changes))


@pytest.mark.parametrize("rounding", ["ceil", "whole"])
@torch.no_grad()
def test_tokens_stand_where_those_of_conv_do(rounding: str) -> None:
    rate, size = Rate.parse("4x4x2"), Size3(time=4, height=10, width=14)
    ours, conv = (
        built(spec)(history_for(spec, size)).parts[0]
        for spec in (
            attrs.evolve(TINY, rate=rate, rounding=rounding),
            Conv(rate=rate, rounding=rounding, attention="none"),
        )
    )
    assert torch.equal(ours.positions, conv.positions)
    assert torch.equal(ours.extents, conv.extents)


@pytest.mark.parametrize("time", [1, 2, 4, 8])
@torch.no_grad()
def test_latent_t_reaches_the_tokens_of_its_block_and_the_layers_windows(time: int) -> None:
    """Token j covers r(j − 1) + 1 … rj; two layers of window 2 pass it on to two more frames."""
    spec = attrs.evolve(TINY, rate=Rate(height=1, width=1, time=time), lr=False)
    compressor = built(spec)
    history = history_for(spec, Size3(time=1 + 4 * time, height=2, width=2), 1)
    before = compressor(history).parts[0].tokens[0]
    for t in range(history.size.time):
        latents = history.latents.clone()
        latents[:, :, t] += 1.0
        after = compressor(attrs.evolve(history, latents=latents)).parts[0].tokens[0]
        changed = (before != after).any(-1).nonzero()[:, 0].tolist()
        own = -(-t // time)
        assert changed == list(range(own, min(own + 3, 5)))


def test_step_0_is_only_lr_and_that_is_convs() -> None:
    history = history_for(TINY, Size3(time=6, height=11, width=7))
    new, only = built(TINY, awake=False)(history), built(attrs.evolve(TINY, hr=False))(history)
    assert torch.equal(new.parts[0].tokens, only.parts[0].tokens)
    (conv,) = built(Conv(rate=TINY.rate, hr=False))(history).parts
    assert close(only.parts[0].tokens, conv.tokens)
    assert torch.equal(only.parts[0].positions, conv.positions)
    lr = history.lr[TINY.rate]
    lr = torch.cat([lr, lr[:, :, -1:]], dim=2)  # 6 latents at r = 2: the last block is incomplete
    assert close(only.parts[0].tokens, sample_fit().tokens(lr).flatten(1, 3))


def test_switches_decide_needs_parameters_and_the_first_output() -> None:
    only_lr, without_lr = attrs.evolve(TINY, hr=False), attrs.evolve(TINY, lr=False)
    assert not list(built(only_lr).parameters())
    assert TransformerCompressor.needs(only_lr).hr is False
    assert TransformerCompressor.needs(without_lr).rates == frozenset()
    history = history_for(without_lr, Size3(time=3, height=4, width=4))
    assert bool(built(without_lr, awake=False)(history).parts[0].tokens.any())


def test_an_empty_history_keeps_every_parameter_in_the_graph() -> None:
    compressor = built(attrs.evolve(TINY, features=True))
    memory = compressor(history_for(TINY, Size3(time=0, height=4, width=4)))
    assert memory.length == 0 and [p.name for p in memory.parts] == ["transformer-2x2x2"]
    memory.anchor().backward()
    assert all(p.grad is not None for p in compressor.parameters())


def test_gradients_of_a_stream_are_those_of_the_whole() -> None:
    compressor, history = built(TINY), history_for(TINY, Size3(time=8, height=6, width=6))
    compressor(history).parts[0].tokens.square().sum().backward()
    whole = [p.grad.clone() for p in compressor.parameters() if p.grad is not None]
    compressor.zero_grad()
    streamed(compressor, history, [1, 2, 5]).parts[0].tokens.square().sum().backward()
    parts = [p.grad for p in compressor.parameters() if p.grad is not None]
    assert len(whole) == len(parts) == len(list(compressor.parameters()))
    assert all(
        torch.allclose(a, b, rtol=1e-10, atol=1e-11) for a, b in zip(whole, parts, strict=True)
    )


def test_the_state_is_constant_once_its_windows_are_full() -> None:
    compressor = built(TINY)
    history = history_for(TINY, Size3(time=41, height=6, width=6), 1)
    state, held = None, []
    with torch.no_grad():
        for chunk in history.chunks([9, 8, 8, 8, 8]):
            state, _ = compressor.step(state, chunk)
            held.append(sum(x.untyped_storage().nbytes() for x in state.values()))
    assert held[0] == held[-1]
    assert state is not None and state["layer.1"].shape[2] == TINY.window - 1


def test_rotary_attention_sees_differences_of_places_only() -> None:
    one, two = torch.randn(2, 1, 1, 1, 3, 12).double().expand(2, 1, 3, 6, 3, 12)
    near, far = rotation(12, 0, 3, 2, 3), rotation(12, 1000, 3, 2, 3)

    def scores(angles: torch.Tensor) -> torch.Tensor:
        query, key = (rotated(x, angles).flatten(1, 2) for x in (one, two))
        return torch.einsum("blhd,bmhd->bhlm", query, key)

    torch.testing.assert_close(scores(near), scores(far), rtol=0, atol=1e-10)
    assert not close(scores(near)[..., 0, 0], scores(near)[..., 0, 1])  # columns
    assert not close(scores(near)[..., 0, 0], scores(near)[..., 0, 3])  # rows
    assert not close(scores(near)[..., 0, 0], scores(near)[..., 0, 6])  # memory frames


def test_what_cannot_follow_is_refused() -> None:
    compressor, history = built(TINY), history_for(TINY, Size3(time=5, height=4, width=4))
    state, _ = compressor.step(None, history.chunk(0, 2))
    with pytest.raises(ValueError, match="from latent 3 after 2 were seen"):
        compressor.step(state, history.chunk(3, 5))
    with pytest.raises(ValueError, match="transformer-2x2x2 needs LR latents of rate 2x2x2"):
        compressor(attrs.evolve(history, lr={}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_width": 7}, "must be even and ≥ 6"),
        ({"head_width": 4}, "must be even and ≥ 6"),
        ({"lr": False, "hr": False}, "lr and hr are both off"),
        ({"hr": False, "features": True}, "features come from the HR branch, which is off"),
    ],
)
def test_specs_that_mean_nothing_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        attrs.evolve(TINY, **changes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_and_autocast_stay_near_float64(dtype: torch.dtype) -> None:
    compressor = built(TINY)
    history = history_for(TINY, Size3(time=6, height=8, width=8))
    want = compressor(history).parts[0].tokens
    low = compressor.to(dtype)(history.to("cpu", dtype)).parts[0].tokens
    assert low.dtype == dtype
    assert (low.double() - want).norm() < 3e-2 * want.norm()
    mixed = compressor.float()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = streamed(mixed, history.to("cpu", torch.float32), [1, 2, 3]).parts[0].tokens
        tokens.float().square().sum().backward()
    assert (tokens.double() - want).norm() < 5e-2 * want.norm()
    assert all(bool(p.grad.isfinite().all()) for p in mixed.parameters() if p.grad is not None)
