"""The conv compressor: exact streaming at every rate, size and switch; alignment; step 0."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.core.contract.compressor import check_compressor, randomize_zeros
from longtake.core.contract.samples import SMALL, alone, sample_fit, sample_history, shortened
from longtake.core.errors import UserError
from longtake.core.interfaces.compressor import MemoryEncoder, State
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, merge
from longtake.kernels.reference import windowed_attention
from longtake.plugins.compressors.conv import ConvCompressor
from longtake.plugins.compressors.conv_layers import conv_shapes
from longtake.plugins.compressors.specs import Conv

TINY = Conv(rate=Rate.parse("2x2x2"), channels=(4, 6, 8), heads=2, head_width=4, window=2, layers=1)
QUICK = settings(max_examples=30, deadline=None)
step = st.sampled_from([1, 2, 4, 8])
rates = st.builds(lambda h, w, t: Rate(height=h, width=w, time=t), step, step, step)
sizes = st.builds(
    lambda t, h, w: Size3(time=t, height=h, width=w),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 20),
)


@st.composite
def specs(draw: st.DrawFn) -> Conv:
    lr, hr = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    return attrs.evolve(
        TINY,
        rate=draw(rates),
        kernel=draw(st.sampled_from([3, 4])),
        norm=draw(st.sampled_from(["none", "rms"])),
        time_padding=draw(st.sampled_from(["replicate", "zeros"])),
        attention=draw(st.sampled_from(["window", "window", "full", "none"])),
        window=draw(st.integers(1, 3)),
        layers=draw(st.integers(1, 2)),
        rounding=draw(st.sampled_from(["ceil", "floor", "whole"])),
        lr=lr,
        hr=hr,
        stem=draw(st.sampled_from(["latents", "latents", "pixels"])) if hr else "latents",
        features=hr and draw(st.booleans()),
    )


def built(spec: Conv, *, awake: bool = True) -> ConvCompressor:
    torch.manual_seed(0)
    compressor = ConvCompressor(spec, sample_fit()).double()
    if awake:
        randomize_zeros(compressor)
    return compressor


def history_for(spec: Conv, size: Size3, batch: int = 2) -> History:
    return sample_history(size, ConvCompressor.needs(spec), batch, start=8)


def streamed(compressor: ConvCompressor, history: History, lengths: Sequence[int]) -> Memory:
    state: State | None = None
    memories = []
    for chunk in history.chunks(lengths):
        state, memory = compressor.step(state, chunk)
        memories.append(memory)
    assert state is not None
    return merge([*memories, compressor.pending(state)])


def close(a: Tensor, b: Tensor) -> bool:
    scale = max(1.0, float(b.abs().max())) if b.numel() else 1.0
    return a.shape == b.shape and bool(((a - b).abs() <= 1e-12 * scale).all())


@pytest.mark.slow
@QUICK
@given(specs(), sizes, st.data())
@torch.no_grad()
def test_any_chunking_gives_the_memory_of_the_whole(
    spec: Conv, size: Size3, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, max(size.time - 1, 1)))) - {size.time})
    edges = [0, *cuts, size.time]
    lengths = [b - a for a, b in zip(edges, edges[1:], strict=False)]
    compressor, history = built(spec), history_for(spec, size)
    whole = compressor(history)
    merged = streamed(compressor, history, lengths)
    assert whole.length == ConvCompressor.context_length(spec, SMALL, size).tokens
    assert merged.length == whole.length and merged.size == whole.size == size
    if whole.length:
        a, b = merged.parts[0], whole.parts[0]
        assert close(a.tokens, b.tokens)
        assert torch.equal(a.positions, b.positions) and torch.equal(a.extents, b.extents)
        assert list(a.features) == list(b.features) == (["hidden"] if spec.features else [])
        assert all(close(a.features[name], b.features[name]) for name in a.features)


@pytest.mark.slow
@QUICK
@given(specs(), sizes, st.data())
@torch.no_grad()
def test_each_sample_of_a_ragged_batch_is_as_alone(
    spec: Conv, size: Size3, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, size.time), min_size=2, max_size=3))
    compressor = built(spec)
    ragged = shortened(history_for(spec, size, len(lengths)), lengths)
    part = compressor(ragged).parts[0]
    for index, length in enumerate(lengths):
        own = compressor(alone(ragged, index)).parts[0]
        real = part.valid[index]
        cells = ConvCompressor.context_length(spec, SMALL, attrs.evolve(size, time=length))
        assert int(real.sum()) == cells.tokens
        assert close(part.tokens[index][real], own.tokens[0])
        assert torch.equal(part.positions[index][real], own.positions[0])
        assert torch.equal(part.extents[index][real], own.extents[0])
        assert all(close(x[index][real], own.features[n][0]) for n, x in part.features.items())
    assert bool(part.tokens.isfinite().all())


@pytest.mark.parametrize("attention", ["window", "full", "none"])
def test_padding_is_never_read_not_even_as_nan(attention: str) -> None:
    compressor = built(attrs.evolve(TINY, attention=attention))
    ragged = shortened(history_for(TINY, Size3(time=5, height=4, width=4), 3), [5, 2, 0])
    spoiled = attrs.evolve(
        ragged,
        latents=ragged.latents.masked_fill(ragged.latents.abs() > 50, torch.nan),
        lr={rate: lr.masked_fill(lr.abs() > 50, torch.nan) for rate, lr in ragged.lr.items()},
    )
    assert bool(spoiled.latents[2].isnan().any())
    assert bool(compressor(spoiled).parts[0].tokens.isfinite().all())


CHANGES: list[dict[str, object]] = [
    {"rate": Rate.parse("4x2x4"), "attention": "full"},
    {"rate": Rate.parse("8x8x8"), "rounding": "floor", "kernel": 4, "norm": "rms"},
    {"rate": Rate.parse("1x1x1"), "lr": False, "time_padding": "zeros", "layers": 2},
    {"rate": Rate.parse("2x4x2"), "attention": "none"},
    {"hr": False},
    {"stem": "pixels", "features": True, "attention": "full"},
    {"stem": "pixels", "rate": Rate.parse("4x4x4"), "lr": False, "kernel": 4},
    {"features": True, "rate": Rate.parse("2x2x1")},
    {"rate": Rate.parse("4x4x2"), "rounding": "whole"},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [CHANGES[0], *(pytest.param(more, marks=pytest.mark.slow) for more in CHANGES[1:])],
)
def test_contract(changes: dict[str, object]) -> None:
    check_compressor(ConvCompressor, attrs.evolve(TINY, **changes))


STRIDES = {
    "4x4x2": ["211", "122", "122", "122"],
    "2x2x1": ["122", "122", "111"],
    "2x2x2": ["211", "122", "122"],
    "2x2x4": ["211", "211", "122", "122"],
    "2x2x8": ["211", "211", "211", "122", "122"],
    "4x1x1": ["122", "121", "121"],
    "1x1x1": ["122", "111"],
}


@pytest.mark.parametrize("rate", STRIDES)
def test_strides_and_widths_follow_the_paper(rate: str) -> None:
    made = conv_shapes(attrs.evolve(Conv(), rate=Rate.parse(rate)), SMALL)
    assert ["".join(map(str, stage.stride)) for stage in made] == ["111", *STRIDES[rate]]
    widths = [64, 128, 256, 512, 512, 512][: len(made)]
    assert [stage.outputs for stage in made] == [*widths[:-1], 512]
    assert [stage.inputs for stage in made] == [SMALL.channels, *widths[:-1]]


def test_a_patch_that_is_no_power_of_two_is_refused_in_one_line() -> None:
    geometry = attrs.evolve(SMALL, patch=Size3(time=1, height=3, width=2))
    with pytest.raises(UserError, match="power of two, not 6"):
        ConvCompressor(TINY, sample_fit(geometry))


@pytest.mark.parametrize("attention", ["window", "none"])
@pytest.mark.parametrize("time", [1, 2, 4, 8])
@torch.no_grad()
def test_latent_t_reaches_token_t_over_r_rounded_up_and_none_before(
    time: int, attention: str
) -> None:
    """Token j covers r(j − 1) + 1 … rj: so latent t is first seen by token ⌈t / r⌉."""
    spec = attrs.evolve(
        TINY, rate=Rate(height=1, width=1, time=time), attention=attention, lr=False
    )
    compressor = built(spec)
    history = history_for(spec, Size3(time=17, height=2, width=2), 1)
    before = compressor(history).parts[0].tokens[0]
    for t in range(17):
        latents = history.latents.clone()
        latents[:, :, t] += 1.0
        after = compressor(attrs.evolve(history, latents=latents)).parts[0].tokens[0]
        changed = (before != after).any(-1).nonzero()[:, 0]
        assert int(changed[0]) == -(-t // time)


@torch.no_grad()
def test_kernel_4_centres_tokens_and_kernel_3_does_not() -> None:
    """Mirrored weights on a mirrored history give mirrored tokens where tokens are centred."""
    for kernel in (4, 3):
        spec = attrs.evolve(TINY, kernel=kernel, lr=False, attention="none")
        compressor, history = built(spec), history_for(spec, Size3(time=3, height=8, width=16), 1)
        tokens = compressor(history).parts[0].tokens.reshape(2, 2, 4, -1)
        for name, weight in compressor.named_parameters():
            if name.endswith("weight") and weight.dim() == 5:
                weight.copy_(weight.flip(-1))
        mirrored = attrs.evolve(history, latents=history.latents.flip(-1))
        back = compressor(mirrored).parts[0].tokens.reshape(2, 2, 4, -1).flip(2)
        assert close(tokens, back) == (kernel == 4)


@pytest.mark.parametrize("attention", ["window", "full", "none"])
def test_step_0_is_only_lr_exactly(attention: str) -> None:
    both = attrs.evolve(TINY, attention=attention, rate=Rate.parse("4x2x2"))
    only = attrs.evolve(both, hr=False)
    history = history_for(both, Size3(time=6, height=11, width=7))
    a, b = built(both, awake=False)(history), built(only)(history)
    assert torch.equal(a.parts[0].tokens, b.parts[0].tokens)
    fit = sample_fit()
    lr = history.lr[both.rate]
    lr = torch.cat([lr, lr[:, :, -1:]], dim=2)  # 6 latents at r = 2: the last block is incomplete
    assert torch.equal(b.parts[0].tokens, fit.tokens(lr).flatten(1, 3))


def test_switches_decide_needs_parameters_and_the_first_output() -> None:
    only_lr, without_lr = attrs.evolve(TINY, hr=False), attrs.evolve(TINY, lr=False)
    assert not list(built(only_lr).parameters())
    assert ConvCompressor.needs(only_lr).hr is False
    assert ConvCompressor.needs(only_lr).rates == {TINY.rate}
    assert ConvCompressor.needs(without_lr).rates == frozenset()
    history = history_for(without_lr, Size3(time=3, height=4, width=4))
    assert bool(built(without_lr, awake=False)(history).parts[0].tokens.any())


def test_an_empty_history_keeps_every_parameter_in_the_graph() -> None:
    compressor = built(TINY)
    memory = compressor(history_for(TINY, Size3(time=0, height=4, width=4)))
    assert memory.length == 0
    memory.anchor().backward()
    assert all(p.grad is not None for p in compressor.parameters())


def test_a_long_prefix_costs_the_state_nothing_and_a_view_keeps_nothing_alive() -> None:
    compressor = built(TINY)
    history = history_for(TINY, Size3(time=41, height=6, width=6), 1)
    state, held = None, []
    with torch.no_grad():
        for chunk in history.chunks([9, 8, 8, 8, 8]):
            state, _ = compressor.step(state, chunk)
            held.append(sum(x.untyped_storage().nbytes() for x in state.values()))
    assert held[0] == held[-1]
    assert state is not None and state["attention.0"].shape[2] == TINY.window - 1


def test_gradients_of_a_stream_are_those_of_the_whole() -> None:
    compressor, history = built(TINY), history_for(TINY, Size3(time=8, height=6, width=6))
    compressor(history).parts[0].tokens.square().sum().backward()
    whole = [p.grad.clone() for p in compressor.parameters() if p.grad is not None]
    compressor.zero_grad()
    streamed(compressor, history, [1, 2, 5]).parts[0].tokens.square().sum().backward()
    parts = [p.grad for p in compressor.parameters() if p.grad is not None]
    assert len(whole) == len(parts) > 0
    assert all(
        torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(whole, parts, strict=True)
    )


def test_what_cannot_follow_is_refused() -> None:
    compressor, history = built(TINY), history_for(TINY, Size3(time=5, height=4, width=4))
    state, _ = compressor.step(None, history.chunk(0, 2))
    with pytest.raises(ValueError, match="from latent 3 after 2 were seen"):
        compressor.step(state, history.chunk(3, 5))
    with pytest.raises(ValueError, match="needs LR latents of rate 2x2x2"):
        compressor(attrs.evolve(history, lr={}))
    short = {rate: lr[:, :, :2] for rate, lr in history.lr.items()}
    with pytest.raises(ValueError, match="travel with 3 LR latents"):
        compressor(attrs.evolve(history, lr=short))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["none", "rms"])
def test_half_precision_and_autocast_stay_near_float64(dtype: torch.dtype, norm: str) -> None:
    compressor = built(attrs.evolve(TINY, norm=norm))
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


PIXELS = attrs.evolve(TINY, stem="pixels", lr=False, attention="none")


@torch.no_grad()
def test_the_pixel_stem_gives_each_latent_its_own_frames_and_cells() -> None:
    stem = built(PIXELS).hr.stem  # type: ignore[union-attr]
    past = history_for(PIXELS, Size3(time=5, height=2, width=3), 1)
    assert stem is not None and past.pixels is not None
    before = stem(past)
    assert before.shape == (1, TINY.channels[0], 5, 2, 3)
    for frame in range(past.pixels.shape[2]):
        pixels = past.pixels.clone()
        pixels[:, :, frame, 9, 20] ^= 128
        changed = (stem(attrs.evolve(past, pixels=pixels)) != before).any(1)
        assert changed.nonzero().tolist() == [[0, -(-frame // 4), 1, 2]]


@torch.no_grad()
def test_the_pixel_stem_reads_pixels_and_no_latents() -> None:
    compressor = built(PIXELS)
    past = history_for(PIXELS, Size3(time=5, height=4, width=4))
    needs = ConvCompressor.needs(PIXELS)
    assert needs.pixels and not needs.hr and not needs.rates
    blank = attrs.evolve(past, latents=torch.zeros_like(past.latents))
    assert torch.equal(compressor(blank).parts[0].tokens, compressor(past).parts[0].tokens)
    assert past.pixels is not None
    black = attrs.evolve(past, pixels=torch.zeros_like(past.pixels))
    assert not torch.equal(compressor(black).parts[0].tokens, compressor(past).parts[0].tokens)


def test_frames_that_fill_no_cell_are_filled_by_their_last_row_and_column() -> None:
    compressor = built(PIXELS)
    past = history_for(PIXELS, Size3(time=2, height=3, width=3))
    assert past.pixels is not None
    short = past.pixels[..., :19, :21]
    whole = short[..., :, [*range(21), 20, 20, 20]][..., [*range(19), 18, 18, 18, 18, 18], :]
    a, b = (compressor(attrs.evolve(past, pixels=x)).parts[0].tokens for x in (short, whole))
    assert torch.equal(a, b)


@pytest.mark.parametrize("stem", ["latents", "pixels"])
def test_empty_histories_keep_the_stem_and_features_in_the_graph(stem: str) -> None:
    spec = attrs.evolve(TINY, stem=stem, features=True)
    compressor = built(spec)
    memory = compressor(history_for(spec, Size3(time=0, height=4, width=4)))
    assert memory.length == 0 and memory.features[f"conv-{TINY.rate}.hidden"].shape[1] == 0
    memory.anchor().backward()
    assert all(p.grad is not None for p in compressor.parameters())


@torch.no_grad()
def test_features_are_what_the_last_conv_reads_under_the_name_they_are_told_by() -> None:
    spec = attrs.evolve(TINY, features=True, lr=False)
    compressor = built(spec)
    memory = compressor(history_for(spec, Size3(time=6, height=8, width=8)))
    told = ConvCompressor.features(spec)
    assert {name: x.shape[-1] for name, x in memory.features.items()} == told
    assert MemoryEncoder([compressor]).features == told == {"conv-2x2x2.hidden": 8}
    hidden, out = memory.parts[0].features["hidden"], compressor.hr.out  # type: ignore[union-attr]
    assert close(torch.nn.functional.linear(hidden, out.weight, out.bias), memory.parts[0].tokens)
    assert ConvCompressor.features(TINY) == {}


def test_fresh_features_train_the_convs_from_the_first_step() -> None:
    """The tokens' conv starts at zero and lets no gradient through; features do not wait for it."""
    spec = attrs.evolve(TINY, features=True)
    compressor = built(spec, awake=False)
    part = compressor(history_for(spec, Size3(time=6, height=8, width=8))).parts[0]
    (part.tokens.square().sum() + part.features["hidden"].square().sum()).backward()
    assert all(bool(p.grad.any()) for p in compressor.parameters() if p.grad is not None)


@pytest.mark.parametrize("fields", [{"stem": "pixels"}, {"features": True}])
def test_options_of_a_branch_that_is_off_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="hr is off"):
        attrs.evolve(TINY, hr=False, **fields)


def test_pixels_that_do_not_fit_are_refused() -> None:
    compressor = built(PIXELS)
    past = history_for(PIXELS, Size3(time=3, height=2, width=2))
    assert past.pixels is not None
    with pytest.raises(ValueError, match="needs the pixels; the history has none"):
        compressor(attrs.evolve(past, pixels=None))
    with pytest.raises(ValueError, match="come with 9×16×16 pixels, not 8×16×16"):
        compressor(attrs.evolve(past, pixels=past.pixels[:, :, :8]))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(1, 6), st.integers(1, 3))
def test_windowed_attention_is_masked_attention(
    window: int, before: int, new: int, cells: int
) -> None:
    torch.manual_seed(0)
    before = min(before, window - 1)
    frames = before + new
    query, key, value = torch.randn(3, 2, frames, cells, 2, 4).double()
    frame = torch.arange(frames).repeat_interleave(cells)
    behind = frame[:, None] - frame[None]
    mask = (behind >= 0) & (behind < window)
    if before:  # a state whose window is filled only as far as the history goes
        mask = mask[before * cells :]
    scores = torch.einsum("blhd,bmhd->bhlm", query[:, before:].flatten(1, 2), key.flatten(1, 2))
    weights = (scores / 2).masked_fill(~mask, -torch.inf).softmax(-1)
    want = torch.einsum("bhlm,bmhd->blhd", weights, value.flatten(1, 2))
    got = windowed_attention(query[:, before:], key, value, window).flatten(1, 2)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
