"""A tiny Wan that begins from scratch: noise passes through, heads look at nearby memory."""

from __future__ import annotations

import torch
from attrs import evolve

from longtake.backbones.blocks.rotary import rotary_table, rotate
from longtake.backbones.codecs.specs import Dct
from longtake.backbones.wan.block import rotary_axes
from longtake.backbones.wan.published import CORNERS, direction
from longtake.backbones.wan.published import TinyWanBackbone as Model
from longtake.backbones.wan.specs import TinyWan

SPEC = TinyWan(heads=8, head_width=32, layers=2, ffn=64, codec=Dct(channels=48))


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
    model = Model.load(evolve(SPEC, memory_time=0.0), seed=0)
    times = torch.tensor([0.0, 0.25, 0.5, 1.0])
    with torch.no_grad():
        _, modulation = model.embed_time(times, times)
    scale = modulation[:, 1] + model.blocks[0].scale_shift_table[:, 1]
    torch.testing.assert_close(scale, -times[:, None].expand_as(scale), atol=0.02, rtol=0)


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
