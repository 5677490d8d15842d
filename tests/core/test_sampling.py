"""Schedulers solve the flow, memory is cached once, steps can be stopped, specs refuse nonsense."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.backbones.texts.specs import Bytes
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.backbones.wan.specs import TinyWan as TinyWanSpec
from longtake.core.config import from_json, to_json
from longtake.core.errors import UserError
from longtake.core.interfaces.backbone import Backbone, Context
from longtake.core.interfaces.retriever import Scene
from longtake.core.model import memory_limit
from longtake.core.sample.loop import (
    TIMESTEPS,
    Conditioning,
    Contexts,
    Schedule,
    draw_noise,
    guided,
    sample,
    steps,
    times_of,
    weight_at,
)
from longtake.core.sample.spec import SCHEDULERS, MemoryBudget, Sampler
from longtake.core.values.grid import MemoryLimit, Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, Part
from longtake.core.values.text import Text
from longtake.plugins.compressors.specs import Pool, Window
from longtake.plugins.retrievers.flow import FlowRetriever
from longtake.plugins.retrievers.specs import Flow

from ..small import small as small_experiment

CPU = torch.device("cpu")
SPREAD = 0.5  # of the clean values, whose flow is known


class Gaussian(Backbone):
    """The exact velocity of clean values that are normal with spread `SPREAD`: X₀ = SPREAD·X₁."""

    def velocity(self, noisy: Tensor, t: Tensor, frames: Tensor, context: Context) -> Tensor:
        t = t[:, None, None, None, None].to(noisy.dtype)
        scale = (t - (1 - t) * SPREAD**2) / ((1 - t) ** 2 * SPREAD**2 + t**2)
        return scale * noisy

    def context(self, text: Text, memory: object = None) -> Context:
        return Context(text=text)


Gaussian.__abstractmethods__ = frozenset()  # only what sampling asks is here


def text(batch: int = 1, seed: int = 5) -> Text:
    made = torch.randn(batch, 3, 8, generator=torch.Generator().manual_seed(seed))
    return Text(embeddings=made, mask=torch.ones(batch, 3, dtype=torch.bool))


def given_of(memory: Any = None, batch: int = 1) -> Conditioning:
    return Conditioning(text=text(batch), null_text=text(1, seed=9), memory=memory or Memory())


def solved(name: str, count: int, shift: float = 1.0) -> float:
    """The error of a scheduler in so many steps, of the greatest value."""
    noise = torch.randn(1, 2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(scheduler=name, steps=count, guidance=1.0)
    frames = torch.zeros(1, 2, dtype=torch.int64)
    found = sample(Gaussian(), sampler, noise, frames, given_of(), shift=shift)
    return float((found - SPREAD * noise).abs().max() / noise.abs().max())


@pytest.mark.parametrize("name", ["euler", "heun", "unipc", "dpm++", "deis"])
def test_schedulers_solve_the_flow(name: str) -> None:
    few, many = solved(name, 5), solved(name, 60)
    assert many < 0.02 and many < few / 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lcm", "sa"])
def test_schedulers_that_draw_give_the_spread_and_obey_their_generator(name: str) -> None:
    noise = draw_noise(4, Size3(time=2, height=16, width=16), torch.Generator().manual_seed(1))
    sampler = Sampler(scheduler=name, steps=40, guidance=1.0)
    frames = torch.zeros(1, 2, dtype=torch.int64)

    def run(seed: int | None) -> Tensor:
        draws = None if seed is None else torch.Generator().manual_seed(seed)
        return sample(
            Gaussian(), sampler, noise, frames, given_of(), shift=1.0, generator=draws
        )  # fmt: skip

    assert torch.equal(run(3), run(3)) and torch.equal(run(None), run(None))
    assert not torch.equal(run(3), run(4))
    if name == "sa":  # lcm's own jumps to the clean mean lose spread
        assert float(run(3).std()) == pytest.approx(SPREAD, rel=0.1)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(sorted(SCHEDULERS)),
    count=st.integers(1, 60),
    shift=st.floats(0.5, 16.0),
)
def test_times_fall_from_one_and_count_the_timesteps_to_the_bit(
    name: str, count: int, shift: float
) -> None:
    schedule = Schedule.of(Sampler(scheduler=name, steps=count), shift, CPU)
    times, timesteps = schedule.times, schedule.scheduler.timesteps
    assert torch.equal((times * TIMESTEPS).float(), timesteps.float())
    # diffusers' own shift rounds 1 up by a float32 step at some shifts; its bits are kept
    assert 0.99 < float(times[0]) <= 1 + 2**-23 and bool((times >= 0).all())
    assert bool((times.diff() <= 0).all())
    assert len(times) == (2 * count - 1 if name == "heun" else count)


def test_every_whole_timestep_is_counted() -> None:
    whole = torch.arange(1001)
    assert torch.equal((times_of(whole, whole / 1000) * TIMESTEPS).float(), whole.float())
    assert times_of(whole / 7, whole / 7000).dtype in (torch.float32, torch.float64)


def test_the_shift_of_the_sampler_goes_before_the_backbones() -> None:
    plain = Schedule.of(Sampler(steps=5), 3.0, CPU).times
    assert torch.equal(Schedule.of(Sampler(steps=5, shift=3.0), 9.0, CPU).times, plain)
    assert bool((Schedule.of(Sampler(steps=5), 9.0, CPU).times[1:] > plain[1:]).all())


@settings(deadline=None, max_examples=30)
@given(weight=st.floats(0, 8), low=st.none() | st.floats(0, 8), t=st.floats(0.01, 1))
def test_guidance_is_the_weighted_difference(weight: float, low: float | None, t: float) -> None:
    sampler = Sampler(guidance=weight, low_guidance=low, low_below=0.5)
    asked: list[int] = []
    x = torch.zeros(1, 1, 1, 1, 1, dtype=torch.float64)

    class Two(Gaussian):
        def velocity(self, noisy: Tensor, t: Tensor, frames: Tensor, context: Context) -> Tensor:
            asked.append(int(context.text.mask.sum()))
            return noisy + asked[-1]

    prompt, empty = (Context(text=text(batch)) for batch in (2, 1))  # they say 6 and 3
    contexts = Contexts(prompt=prompt, negative=empty if sampler.guided else None)
    at = torch.tensor(t, dtype=torch.float64)
    frames = torch.zeros(1, 1, dtype=torch.int64)
    found = guided(Two(), weight_at(sampler, at), x, at, frames, contexts)
    wanted = low if low is not None and t < 0.5 else weight
    assert float(found) == pytest.approx(3 + wanted * 3, abs=1e-9)
    assert asked == ([6] if wanted == 1 else [6, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_boundary_itself_is_high(dtype: torch.dtype) -> None:
    sampler = Sampler(guidance=4.0, low_guidance=3.0, low_below=0.9)
    assert weight_at(sampler, torch.tensor(0.9, dtype=dtype)) == 4.0
    assert weight_at(sampler, torch.tensor(0.8999, dtype=dtype)) == 3.0


def test_no_guidance_reads_no_empty_prompt() -> None:
    assert not Sampler(guidance=1.0).guided and not Sampler(guidance=1, low_guidance=1.0).guided
    assert Sampler(guidance=1.0, low_guidance=2.0).guided and Sampler().guided
    assert Contexts.of(Gaussian(), Sampler(guidance=1.0), given_of()).negative is None


@pytest.fixture
def small() -> Callable[..., TinyWanBackbone]:
    def make(**changes: Any) -> TinyWanBackbone:
        numbers: dict[str, Any] = dict(heads=2, head_width=20, layers=2, ffn=48, begin="diffusers")
        spec = TinyWanSpec(**(numbers | changes), text_encoder=Bytes(width=8, length=2))
        return TinyWanBackbone.load(spec, seed=0)

    return make


def memory(tokens: int = 6, batch: int = 1) -> Memory:
    draws = torch.Generator().manual_seed(3)
    part = Part(
        name="test",
        tokens=torch.randn(batch, tokens, 40, generator=draws),
        positions=torch.rand(batch, tokens, 3, generator=draws, dtype=torch.float64) * 3,
        extents=torch.ones(batch, tokens, 3, dtype=torch.float64),
        valid=torch.ones(batch, tokens, dtype=torch.bool),
    )
    return Memory(parts=(part,))


def run(model: TinyWanBackbone, held: Any, batch: int = 1, **how: Any) -> Tensor:
    channels = model.geometry.channels
    size = Size3(time=2, height=4, width=4)
    noise = draw_noise(channels, size, torch.Generator().manual_seed(1), batch)
    frames = torch.tensor([[4, 9]]).expand(batch, -1)
    sampler = Sampler(steps=3, guidance=2.0)
    return sample(model, sampler, noise, frames, given_of(held, batch), shift=3.0, **how)


@pytest.mark.parametrize("attention", ["isolated", "isolated-causal"])
def test_an_isolated_memory_is_remembered_once(
    small: Callable[..., TinyWanBackbone], attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = small(attention=attention, memory_time=0.0), []
    remember = TinyWanBackbone.remember
    monkeypatch.setattr(
        TinyWanBackbone, "remember", lambda self, *args: (calls.append(1), remember(self, *args))[1]
    )
    found = run(model, memory())
    assert len(calls) == 1
    with torch.no_grad():
        cache = remember(model, memory())
    assert torch.equal(run(model, cache), found) and len(calls) == 1
    monkeypatch.setattr(TinyWanBackbone, "caches", False)
    assert torch.equal(run(model, memory()), found)  # anew at every step: the same bits
    assert len(calls) == 1


def test_full_memory_goes_along_and_matters(small: Callable[..., TinyWanBackbone]) -> None:
    model = small()
    assert not model.caches and not torch.equal(run(model, memory()), run(model, None))


@torch.no_grad()
def plain_euler(
    model: TinyWanBackbone, x: Tensor, frames: Tensor, count: int, weight: float
) -> Tensor:
    """Euler steps under shift 3, written out."""
    contexts = [model.context(each, memory()) for each in (text(), text(seed=9))]
    even = [1 - i / count for i in range(count)]
    levels = torch.tensor([3 * t / (1 + 2 * t) for t in torch.tensor([*even, 0.0])])
    for t, after in zip(levels[:-1], levels[1:], strict=True):
        prompt, empty = (model.velocity(x, t.expand(1), frames, each) for each in contexts)
        velocity = prompt if weight == 1 else empty + weight * (prompt - empty)
        x = x + (after - t) * velocity
    return x


@pytest.mark.slow
@pytest.mark.parametrize("spec", [Flow(), Flow(steps=5, guidance=2.5, group=2)])
@pytest.mark.parametrize("attention", ["full", "isolated"])
def test_the_flow_retriever_is_plain_euler_to_the_bit(
    small: Callable[..., TinyWanBackbone], attention: str, spec: Flow
) -> None:
    model = small(attention=attention, memory_time=0.0)
    past = History(latents=torch.zeros(1, model.geometry.channels, 6, 4, 4))
    scene = Scene(
        memory=memory(), history=past, size=past.size, text=text(), null_text=text(seed=9),
        backbone=model, codec=None, shift=3.0,
    )  # fmt: skip
    omega = torch.tensor([[0, 2, 5]])
    found = FlowRetriever(spec)(scene, omega, torch.Generator().manual_seed(3)).latents
    size = Size3(time=3, height=4, width=4)
    noise = draw_noise(model.geometry.channels, size, torch.Generator().manual_seed(3))
    parts = zip(noise.split(spec.group, dim=2), omega.split(spec.group, dim=1), strict=True)
    wanted = [plain_euler(model, x, at, spec.steps, spec.guidance) for x, at in parts]
    assert torch.equal(found, torch.cat(wanted, dim=2))


def test_progress_hears_every_pass(small: Callable[..., TinyWanBackbone]) -> None:
    told: list[tuple[int, int, str]] = []
    run(small(), None, progress=lambda *call: told.append(call))
    assert told == [(1, 3, ""), (2, 3, ""), (3, 3, "")]


def test_steps_show_previews_and_can_be_stopped() -> None:
    noise = torch.randn(1, 2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sampler, frames = Sampler(scheduler="euler", steps=8), torch.zeros(1, 2, dtype=torch.int64)
    contexts = Contexts.of(Gaussian(), Sampler(guidance=1.0), given_of())
    walk = steps(Gaussian(), sampler, noise, frames, contexts, shift=1.0)
    first = next(walk)
    assert (first.done, first.total, first.t) == (1, 8, 1.0)
    assert float(first.clean.abs().max()) < 1e-5  # at t = 1 the best guess is the mean, 0
    last = list(walk)[-1]
    assert last.done == 8 and torch.allclose(last.latents, last.clean, atol=1e-5)
    assert not last.latents.requires_grad


def test_noise_is_the_same_for_a_seed_and_normal() -> None:
    size = Size3(time=4, height=16, width=16)
    one, two = (draw_noise(8, size, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == (1, 8, 4, 16, 16)
    assert abs(float(one.std()) - 1) < 0.02 and math.isclose(float(one.mean()), 0, abs_tol=0.05)


@pytest.mark.parametrize(
    "bad",
    [
        {"scheduler": "ddim"}, {"steps": 0}, {"guidance": -1.0}, {"low_guidance": -0.1},
        {"low_below": 1.5}, {"shift": 0.0},
    ],
)  # fmt: skip
def test_specs_refuse_nonsense(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Sampler(**bad)


TINY = TinyWanSpec(heads=2, head_width=20, layers=1, ffn=16)  # 8 frames a second, 4 to a latent


def test_a_budget_is_in_latents_and_tokens() -> None:
    def limit(block: int = 4, trained: float = 10.0, **fields: Any) -> MemoryLimit:
        return MemoryBudget(**fields).limit(TINY.geometry, block, trained=trained)

    assert limit() == MemoryLimit(block=4, latents=20), "by default what was trained: 77 frames"
    assert limit(max_history_seconds=0) == MemoryLimit(block=4), "0 is no limit"
    assert limit(max_memory_tokens=500) == MemoryLimit(block=4, tokens=500), "tokens alone decide"
    both = limit(max_history_seconds=6, max_memory_tokens=500, keep_first_seconds=1)
    assert both == MemoryLimit(block=4, latents=12, tokens=500, first=2)
    assert both.first_covered == 5
    with pytest.raises(UserError, match=r"max_history_seconds 4 is too short: .* 4\.13 or more"):
        limit(max_history_seconds=4, keep_first_seconds=1)
    assert limit(max_history_seconds=4.13, keep_first_seconds=1).latents == 9
    budget = MemoryBudget(max_history_seconds=4.0, max_memory_tokens=9)
    assert from_json(to_json(budget), MemoryBudget) == budget


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        ({"max_history_seconds": -1}, r"0 \(no limit\) or more"),
        ({"max_memory_tokens": 0}, "1 or more"),
        ({"keep_first_seconds": -0.5}, ">= 0"),
    ],
)
def test_a_budget_refuses_nonsense(bad: dict[str, Any], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        MemoryBudget(**bad)


def test_a_budget_of_too_few_tokens_is_refused_before_anything_is_made() -> None:
    size, few = Size3(time=1, height=8, width=8), MemoryBudget(max_memory_tokens=20)
    coarse, fine = Pool(rate=Rate(height=2, width=2, time=4)), Window(latents=1)
    experiment = attrs.evolve(small_experiment(), backbone=TINY, compressors=(coarse, fine))
    assert experiment.memory_block == 4
    line = r"max_memory_tokens 20 is too few: .* two blocks of 4 latents at 8×8 .* 28 tokens"
    with pytest.raises(UserError, match=line):
        memory_limit(experiment, few, size)
    enough = memory_limit(experiment, MemoryBudget(max_memory_tokens=28), size)
    assert enough == MemoryLimit(block=4, tokens=28)
    causal = attrs.evolve(TINY, attention="isolated-causal", memory_time=0.0, cache_block=8)
    assert attrs.evolve(experiment, backbone=causal).memory_block == 8
    assert attrs.evolve(experiment, compressors=()).memory_block == 1
