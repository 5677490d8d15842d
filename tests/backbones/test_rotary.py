"""Rotary embedding at real positions and averaged over what a token covers (design §7.3)."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from diffusers.models.transformers.transformer_hunyuan_video_framepack import (
    HunyuanVideoFramepackRotaryPosEmbed as FramepackTable,
)
from diffusers.models.transformers.transformer_hunyuan_video_framepack import (
    HunyuanVideoFramepackTransformer3DModel as Framepack,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.backbones.blocks import rotary
from longtake.backbones.blocks.rotary import RotaryAxes, rotary_table
from longtake.core.values.memory import Memory

HUNYUAN = RotaryAxes(256.0, (16, 56, 56), torch.float32)
WAN = RotaryAxes(10000.0, (44, 42, 42))
SMALL = RotaryAxes(256.0, (4, 6, 6))
EVERY = pytest.mark.parametrize("axes", [HUNYUAN, WAN, SMALL], ids=["hunyuan", "wan", "small"])


def grid(first: tuple[int, int, int], count: tuple[int, int, int], step: int = 1) -> Tensor:
    """Centres of blocks of `step` cells, `[1, N, 3]`."""
    lines = [
        f + step * torch.arange(n).double() + (step - 1) / 2
        for f, n in zip(first, count, strict=True)
    ]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1).flatten(0, 2)[None]


def by_channel(x: Tensor) -> Tensor:
    """diffusers' layout for `apply_rotary_emb`: every angle twice, `[N, head width]`."""
    return x[0, :, 0].repeat_interleave(2, dim=-1)


@given(size=st.tuples(*[st.integers(1, 6)] * 3), first=st.integers(0, 900))
@settings(max_examples=10, deadline=None)
def test_whole_places_are_the_table_of_hunyuan(size: tuple[int, int, int], first: int) -> None:
    table = FramepackTable(2, 1, list(HUNYUAN.widths), HUNYUAN.theta)
    frames = torch.arange(first, first + size[0])
    theirs = table(frames, 2 * size[1], 2 * size[2], torch.device("cpu"))
    ours = rotary_table(HUNYUAN, grid((first, 0, 0), size))
    assert all(torch.equal(by_channel(o), t) for o, t in zip(ours, theirs, strict=True))


@EVERY
def test_one_axis_is_diffusers_own_function(axes: RotaryAxes) -> None:
    places = torch.tensor([0.0, 3.0, 17.0, 200.0], dtype=axes.dtype)
    ours = rotary_table(axes, places.double()[None, :, None].expand(-1, -1, 3))
    for i, width in enumerate(axes.widths):
        table = get_1d_rotary_pos_embed(
            width, places, axes.theta, use_real=True, freqs_dtype=axes.dtype
        )
        at = sum(axes.widths[:i])
        for o, t in zip(ours, table, strict=True):
            assert torch.equal(by_channel(o)[:, at : at + width], t.float())


@EVERY
@given(seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_one_cell_is_its_centre_to_the_bit(axes: RotaryAxes, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    places = torch.rand(2, 9, 3, generator=random).double() * 400
    pairs = zip(
        rotary_table(axes, places), rotary_table(axes, places, torch.ones(2, 9, 3)), strict=True
    )
    assert all(torch.equal(one, two) for one, two in pairs)


@EVERY
@given(extent=st.tuples(*[st.integers(1, 9)] * 3), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_averaged_is_the_mean_over_cells(
    axes: RotaryAxes, extent: tuple[int, int, int], seed: int
) -> None:
    first = torch.randint(0, 300, (3,), generator=torch.Generator().manual_seed(seed))
    cells = rotary_table(axes._replace(dtype=torch.float64), grid(tuple(first.tolist()), extent))
    extents = torch.tensor(extent).double()[None, None]
    centre = first.double()[None, None] + (extents - 1) / 2
    for mean, all_cells in zip(rotary_table(axes, centre, extents), cells, strict=True):
        gap = (mean - all_cells.double().mean(dim=1, keepdim=True)).abs().max()
        assert float(gap) < (1e-7 if axes.dtype == torch.float64 else 5e-5)


@pytest.mark.parametrize("step", [2, 4])
def test_whole_blocks_are_framepacks_pooled_table(step: int) -> None:
    """FramePack pools cosines and sines; it is no rotation any more."""
    count, first = (2, 2, 3), 24
    frames = torch.arange(first, first + step * count[0])
    rows, columns = step * count[1], step * count[2]
    table = FramepackTable(2, 1, list(HUNYUAN.widths), HUNYUAN.theta)
    whole = table(frames, 2 * rows, 2 * columns, torch.device("cpu"))
    pooled = Framepack._pad_rotary_emb(None, whole, rows, columns, (step,) * 3)
    places = grid((first, 0, 0), count, step)
    ours = rotary_table(HUNYUAN, places, torch.full_like(places, step))
    for mine, theirs in zip(ours, pooled, strict=True):
        assert float((by_channel(mine) - theirs).abs().max()) < 5e-6
    square = (ours.cos.square() + ours.sin.square())[0, :, 0]
    assert float(square.max()) < 1 and float(square.min()) < (0.8 if step == 2 else 0.23)


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["full", "isolated", "isolated-causal"])
@torch.no_grad()
def test_wan_reads_extents_where_its_spec_says_so(wan: Any, attention: str) -> None:
    numbers: dict[str, Any] = dict(attention=attention, memory_time=0.0, layers=1)
    centre, averaged = wan.small(**numbers), wan.small(**numbers, rotary="averaged")
    part = wan.memory(2, 4).parts[0]
    even = attrs.evolve(part, positions=part.positions.round() * 4 + 2.5)
    wide = attrs.evolve(even, extents=torch.tensor([2.0, 3.0, 3.0]).double().expand(2, 4, 3))

    def velocity(model: Any, shown: Any) -> Tensor:
        context = model.context(wan.text(2), Memory(parts=(shown,)))
        x, t = wan.noise(2, 16, 1, 4, 4), torch.tensor([0.2, 0.6])
        out: Tensor = model.velocity(x, t, wan.frames(9, 1, 2), context)
        return out

    assert torch.equal(velocity(averaged, even), velocity(centre, even))
    assert torch.equal(velocity(centre, wide), velocity(centre, even))
    assert not torch.equal(velocity(averaged, wide), velocity(centre, wide))
    real = torch.tensor([[True, True, True, False], [True, True, True, True]])
    places = {
        name: getattr(wide, name).masked_fill(~real[..., None], torch.nan)
        for name in ("tokens", "positions", "extents")
    }
    padded = velocity(averaged, attrs.evolve(wide, **places, valid=real))
    alone = velocity(averaged, wide.take(torch.arange(3).expand(2, -1)))
    assert float((padded[:1] - alone[:1]).abs().max()) < 1e-5
    assert float((padded[1:] - velocity(averaged, wide)[1:]).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [20, 32, 64, 96])
def test_rotating_is_the_same_bits_either_way(width: int, dtype: torch.dtype) -> None:
    axes = RotaryAxes(10000.0, (width - 12, 6, 6))
    table = rotary_table(axes, grid((0, 2, 3), (2, 5, 7)))
    x = torch.randn(3, 70, 5, width).to(dtype)
    assert torch.equal(rotary.rotate(x, table), rotary._rotate_by_parts(x, table))
