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
    cells = torch.cartesian_prod(*[torch.arange(-4, 5) * 0.5] * 3).double()  # half-cell grid
    turns = rotary_table(rotary_axes(32), cells[None])
    here = rotary_table(rotary_axes(32), torch.zeros(1, 1, 3).double())
    for corner in CORNERS:
        query = rotate(direction((0.0, 0.0, 0.0), 32)[None, None, None], here)
        key = rotate(direction(corner, 32).expand(1, len(cells), 1, 32), turns)
        score = (query * key).sum(-1)[0, :, 0]
        assert tuple(cells[score.argmax()].tolist()) == corner


def test_the_first_projection_keeps_amplitudes_through_the_norm() -> None:
    model = Model.load(SPEC, seed=0)
    latents = torch.randn(1, 48, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    one, two = (
        model.blocks[0].norm1(model.patch_embedding(scale * latents).flatten(2).transpose(1, 2))
        for scale in (0.5, 1.0)
    )
    assert (one - two).norm() > 0.05 * two.norm()
