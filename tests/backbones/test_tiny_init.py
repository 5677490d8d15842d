"""A tiny Wan that begins from scratch: noise passes through, heads look at nearby memory."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve

from longtake.backbones.blocks.rotary import rotary_table, rotate
from longtake.backbones.codecs.specs import Dct
from longtake.backbones.wan.block import rotary_axes
from longtake.backbones.wan.published import CORNERS, GUESS_ERROR, VELOCITY, direction
from longtake.backbones.wan.published import TinyWanBackbone as Model
from longtake.backbones.wan.specs import TinyWan

SPEC = TinyWan(heads=8, head_width=32, layers=2, ffn=64, codec=Dct(channels=48))

SIXTEEN = TinyWan(weights=None, layers=2, codec=Dct(channels=16))  # as wide as the one that ships


def velocity_error(begin: str) -> float:
    spec = evolve(SPEC, begin=begin)
    model = Model.load(spec, seed=0)
    noise = torch.randn(2, 48, 2, 6, 8, generator=torch.Generator().manual_seed(1))
    frames = torch.arange(2).expand(2, 2)
    with torch.no_grad():
        context = model.context(model.blank_text(2, 3))
        velocity = model.velocity(noise, torch.ones(2), frames, context)
    return float((velocity - noise).square().mean())


def test_noise_passes_through_at_first() -> None:
    assert velocity_error("local") < 0.2 < 1.0 < velocity_error("diffusers")


def test_each_head_looks_at_its_own_corner() -> None:
    half, quarter = torch.arange(-4, 5) * 0.5, torch.arange(-8, 9) * 0.25
    cells = torch.cartesian_prod(quarter, half, half).double()
    turns = rotary_table(rotary_axes(32), cells[None])
    here = rotary_table(rotary_axes(32), torch.zeros(1, 1, 3).double())
    for corner in CORNERS:
        query = rotate(direction((0.0, 0.0, 0.0), 32)[None, None, None], here)
        key = rotate(direction(corner, 32).expand(1, len(cells), 1, 32), turns)
        score = (query * key).sum(-1)[0, :, 0]
        assert tuple(cells[score.argmax()].tolist()) == corner


def test_no_two_frames_of_twenty_seconds_look_alike() -> None:
    far = torch.zeros(1, 39, 3).double()
    far[0, :, 0] = torch.arange(2, 41)  # latent frames, half a second each
    query = direction((0.0, 0.0, 0.0), 48)[None, None, None]
    turned = rotate(query.expand(1, 39, 1, 48), rotary_table(rotary_axes(48), far))
    assert float((turned * query).sum(-1).max() / query.square().sum()) < 0.93


def test_attention_passes_over_noise_and_reads_clean_memory() -> None:
    model = Model.load(SIXTEEN, seed=0)
    times = torch.tensor([0.0, 0.25, 0.5, 1.0])
    with torch.no_grad():
        _, modulation = model.embed_time(times, times)
    shift, scale, gate = (
        modulation[:, part] + model.blocks[0].scale_shift_table[:, part] for part in range(3)
    )
    noisy = (times > 0).float()[:, None].expand_as(scale)
    for found, wanted in ((shift, noisy), (scale, -noisy), (gate, noisy)):
        torch.testing.assert_close(found, wanted, atol=0.05, rtol=0)
        assert float(found[0].abs().max()) < 1e-3  # memory, to all but nothing


@pytest.mark.parametrize("t", [1.0, 0.7, 0.3])
def test_at_any_time_what_is_left_of_the_input_becomes_a_velocity(t: float) -> None:
    """Without memory the guess of X₀ is 0: X_t times the factor for a guess of some error."""
    model = Model.load(SIXTEEN, seed=0)
    noisy = torch.randn(2, 16, 2, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        context = model.context(model.blank_text(2, 3))
        frames = torch.arange(2).expand(2, 2)
        velocity = model.velocity(noisy, torch.full((2,), t), frames, context)
    wanted = noisy * (VELOCITY * t / (VELOCITY * t * t + GUESS_ERROR))
    assert float((velocity - wanted).square().mean() / wanted.square().mean()) < 0.02


def test_memory_at_the_targets_time_is_not_passed_over() -> None:
    model = Model.load(evolve(SPEC, memory_time=None), seed=0)
    with torch.no_grad():
        _, modulation = model.embed_time(torch.ones(1), torch.ones(1))
    assert float(modulation[:, 1].abs().max()) < 0.2


def test_the_first_projection_keeps_amplitudes_through_the_norm() -> None:
    model = Model.load(SPEC, seed=0)
    latents = torch.randn(1, 48, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    one, two = (
        model.blocks[0].norm1(model.patch_embedding(scale * latents).flatten(2).transpose(1, 2))
        for scale in (0.5, 1.0)
    )
    assert (one - two).norm() > 0.05 * two.norm()
