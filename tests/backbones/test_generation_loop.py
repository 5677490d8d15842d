"""The loop of generation in `Backbone`'s docstring, as the interfaces carry it (Stage II)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from attrs import frozen
from torch import Tensor

from longtake.core.interfaces.backbone import Backbone, Context
from longtake.core.interfaces.compressor import Compressor, Fit, Length, MemoryEncoder, Needs, State
from longtake.core.interfaces.spec import CompressorSpec
from longtake.core.registry import build
from longtake.core.values.grid import Geometry, Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, Part, merge, token_places
from longtake.plugins.compressors.conv import ConvCompressor
from longtake.plugins.compressors.keyframes import WindowCompressor
from longtake.plugins.compressors.specs import Conv, Pool, Window

RATE = Rate(height=1, width=1, time=2)
SIZE, CHUNK, STEPS, GUIDANCE = (6, 7), 3, (1.0, 0.75, 0.4), 2.0


@frozen(kw_only=True)
class Pairs(CompressorSpec):
    """Mean tokens of pairs of latents."""


class PairCompressor(Compressor[Pairs]):
    """The DiT's own tokens, the mean of each two latents: the odd one is pending."""

    def __init__(self, spec: Pairs, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.fit = fit

    @classmethod
    def needs(cls, spec: Pairs) -> Needs:
        return Needs()

    @classmethod
    def context_length(cls, spec: Pairs, geometry: Geometry, size: Size3) -> Length:
        return Length(tokens=RATE.token_grid(size, geometry.patch).cells)

    def forward(self, history: History) -> Memory:
        state, settled = self.step(None, history)
        return merge([settled, self.pending(state)])

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        seen = 0 if state is None else int(state["seen"])
        new = chunk.latents if state is None else torch.cat([state["odd"], chunk.latents], dim=2)
        total = seen + chunk.size.time
        settled = RATE.settled_latents(total) - (seen - (0 if state is None else _odd(state)))
        after = {"odd": new[:, :, settled:], "seen": torch.tensor(total), "start": chunk.start}
        return after, self._memory(
            new[:, :, :settled], RATE.settled_tokens(seen), total, chunk.start
        )

    def pending(self, state: State) -> Memory:
        total = int(state["seen"])
        return self._memory(state["odd"], RATE.settled_tokens(total), total, state["start"])

    def _memory(self, latents: Tensor, skip: int, total: int, start: Tensor) -> Memory:
        size = Size3(time=total, height=latents.shape[3], width=latents.shape[4])
        if not latents.shape[2]:
            return Memory(size=size)
        whole = latents[:, :, :1] if skip == 0 else latents[:, :, :0]
        rest = latents[:, :, whole.shape[2] :]
        means = [x.mean(dim=2, keepdim=True) for x in rest.split(2, dim=2) if x.shape[2]]
        grid = self.fit.tokens(torch.cat([whole, *means], dim=2))
        places = token_places(
            RATE,
            size,
            self.geometry.patch,
            Size3(time=grid.shape[1], height=grid.shape[2], width=grid.shape[3]),
            start=start,
            length=torch.full_like(start, total),
            skip=skip,
        )
        positions, extents, valid = places
        tokens = grid.flatten(1, 3)
        part = Part(name="pairs", tokens=tokens, positions=positions, extents=extents, valid=valid)
        return Memory(parts=(part,), size=size)


def _odd(state: State) -> int:
    return int(state["odd"].shape[2])


def denoise(
    model: Backbone, contexts: tuple[Context, Context], frames: Tensor, x: Tensor
) -> Tensor:
    """Euler steps with guidance: X_next = X_t + (t_next − t)·v."""
    for t, after in zip(STEPS, (*STEPS[1:], 0.0), strict=True):
        at = torch.full((x.shape[0],), t)
        empty, prompt = (model.velocity(x, at, frames, context) for context in contexts)
        x = x + (after - t) * (empty + GUIDANCE * (prompt - empty))
    return x


def take(wan: Any, model: Backbone, cached: bool, segments: int = 3) -> tuple[Tensor, list[int]]:
    """A take of some segments, each reading all before it; and the memory lengths."""
    compressor = PairCompressor(Pairs(), model.fit())
    encoder, text = MemoryEncoder([compressor]), wan.text(1)
    video = wan.noise(1, 16, 1, *SIZE, seed=50)
    state, settled = encoder.step(None, History(latents=video))
    kept, lengths = [settled], []
    for segment in range(segments):
        memory = merge([*kept, encoder.pending(state)])
        assert_same(memory, compressor(History(latents=video)))
        held = model.remember(memory) if cached else memory
        prompt, empty = (model.context(each, held) for each in (text, model.blank_text(1, 4)))
        done = video.shape[2]
        x = wan.noise(1, 16, CHUNK, *SIZE, seed=segment)
        made = denoise(model, (empty, prompt), wan.frames(done, CHUNK), x)
        state, settled = encoder.step(state, attrs.evolve(History(latents=made), offset=done))
        kept.append(settled)
        lengths.append(memory.length)
        video = torch.cat([video, made], dim=2)
    return video, lengths


def assert_same(a: Memory, b: Memory) -> None:
    one, two = a.joined(), b.joined()
    assert one is not None and two is not None
    assert torch.allclose(one.tokens, two.tokens, atol=1e-6)
    assert torch.equal(one.positions, two.positions)


@pytest.mark.slow
@pytest.mark.parametrize("time", ["sample", "token"])
@torch.no_grad()
def test_a_take_with_a_cache_is_the_take_without(wan: Any, time: str) -> None:
    model = wan.isolated(time=time)
    video, lengths = take(wan, model, cached=True)
    cells = 3 * 4
    assert video.shape == (1, 16, 1 + 3 * CHUNK, *SIZE) and bool(video.isfinite().all())
    assert lengths == [cells * RATE.time_tokens(1 + CHUNK * i) for i in range(3)]
    assert torch.equal(video, take(wan, model, cached=False)[0])


@torch.no_grad()
def test_a_take_with_full_attention(wan: Any) -> None:
    model = wan.small()
    video, _ = take(wan, model, cached=False)
    assert bool(video.isfinite().all())
    with pytest.raises(ValueError, match="no cache"):
        take(wan, model, cached=True)


@torch.no_grad()
def test_the_past_matters(wan: Any) -> None:
    model = wan.isolated()
    x, frames = wan.noise(1, 16, CHUNK, *SIZE), wan.frames(4, CHUNK)
    compressor, outs = PairCompressor(Pairs(), model.fit()), []
    for seed in (1, 2):
        memory = compressor(History(latents=wan.noise(1, 16, 4, *SIZE, seed=seed)))
        cache = model.remember(memory)
        contexts = (model.context(model.blank_text(1, 4), cache), model.context(wan.text(1), cache))
        outs.append(denoise(model, contexts, frames, x))
    assert not torch.equal(*outs)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["full", "isolated", "isolated-causal"])
@torch.no_grad()
def test_two_compressors_of_which_one_brings_features(wan: Any, attention: str) -> None:
    """The loop as `Backbone` has it: what settled is kept, what is pending is thrown away."""
    model = wan.small(attention=attention, memory_time=0.0, cache_block=2)
    rate = Rate(height=2, width=2, time=2)
    conv = Conv(rate=rate, channels=(4, 8), heads=1, head_width=8, lr=False, features=True)
    window = WindowCompressor(Window(latents=2), model.fit())
    encoder = MemoryEncoder([window, ConvCompressor(conv, model.fit())])
    model.add_enhancer(encoder.features)
    torch.nn.init.normal_(model.adapters()["blocks.0.enhancer.to_out.weight"], std=0.3)
    prompt, empty, video = wan.text(1), model.blank_text(1, 4), wan.noise(1, 16, 1, 6, 8, seed=50)
    state, kept = encoder.step(None, History(latents=video))
    cache = model.remember(kept) if attention == "isolated-causal" else None
    for segment in range(3):
        memory = merge([kept, encoder.pending(state)])
        held: Any = memory
        if attention == "isolated":
            held = model.remember(memory)
        elif cache is not None:
            held = model.remember(encoder.pending(state), cache)
        contexts = (model.context(empty, held), model.context(prompt, held))
        whole = model.context(prompt, model.remember(memory) if model.caches else memory)
        assert set(contexts[1].features) == set(encoder.features)
        done, noise = video.shape[2], wan.noise(1, 16, 2, 6, 8, seed=segment)
        frames, t = wan.frames(done, 2), torch.tensor([0.7])
        again = [model.velocity(noise, t, frames, each) for each in (contexts[1], whole)]
        assert torch.allclose(*again, atol=1e-5)
        made = denoise(model, contexts, frames, noise)
        state, settled = encoder.step(state, attrs.evolve(History(latents=made), offset=done))
        kept = merge([kept, settled])
        cache = model.remember(settled, cache) if cache is not None else None
        video = torch.cat([video, made], dim=2)
    assert bool(video.isfinite().all())


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["full", "isolated-causal"])
@torch.no_grad()
def test_at_a_cut_of_a_take_the_window_goes_and_the_rest_stays(wan: Any, attention: str) -> None:
    """Two rates and a window; the cut before the last segment is decided after all was encoded."""
    model = wan.small(attention=attention, memory_time=0.0, cache_block=4)
    rates = (Rate(height=1, width=1, time=2), Rate(height=2, width=2, time=4))
    specs = (*(Pool(rate=rate) for rate in rates), Window(latents=2))
    encoder, size, done = MemoryEncoder([build(s, model.fit()) for s in specs]), (6, 8), 1
    geometry, text = model.geometry, wan.text(1)
    video, cuts = wan.noise(1, 16, 1, *size, seed=50), ()
    state, kept = encoder.step(None, History(latents=video, cuts=(cuts,)))
    cache, lengths = model.remember(kept) if model.caches else None, []
    for segment, cut in enumerate((False, False, True)):
        if cut:
            state = encoder.cut(state)
            cuts = ((geometry.vae_stride.time * (done - 1) + 1) / geometry.fps,)
        pending = encoder.pending(state)
        memory = merge([kept, pending])
        whole = encoder(History(latents=video, cuts=(cuts,)))
        assert_same(memory, whole)
        held = memory if cache is None else model.remember(pending, cache)
        lengths.append({p.name: p.tokens.shape[1] for p in memory.parts})
        noise, t = wan.noise(1, 16, 2, *size, seed=segment), torch.tensor([0.7])
        frames = wan.frames(done, 2)
        seen = [
            model.velocity(noise, t, frames, model.context(text, each))
            for each in (held, whole if cache is None else model.remember(whole))
        ]
        assert torch.allclose(*seen, atol=1e-5)
        made = History(latents=noise, offset=done, cuts=(cuts,))
        state, settled = encoder.step(state, made)
        kept, video = merge([kept, settled]), torch.cat([video, noise], dim=2)
        cache = None if cache is None else model.remember(settled, cache)
        done += 2
    cells = 3 * 4
    assert [each["2.window-2"] for each in lengths] == [cells, 2 * cells, 0]
    assert [each["0.pool-1x1x2"] for each in lengths] == [cells, 2 * cells, 3 * cells]
    after = {p.name: p.tokens.shape[1] for p in encoder.pending(state).parts}
    assert after["2.window-2"] == 2 * cells, "the new shot has a window of its own"
