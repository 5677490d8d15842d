"""Keys of LoRA in other programs: diffusers' own converters read them back (design §7.8)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from diffusers.loaders.lora_conversion_utils import (
    _convert_hunyuan_video_lora_to_diffusers,
    _convert_musubi_wan_lora_to_diffusers,
    _convert_non_diffusers_wan_lora_to_diffusers,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from longtake.backbones.lora.layouts import (
    HUNYUAN,
    WAN,
    Family,
    LinearSize,
    Pair,
    comfyui,
    fuse,
    kohya,
    linear_kind,
    original_pairs,
    pairs_of,
    with_required,
)

WIDTH, MLP = 3072, 5  # diffusers reads single-stream blocks of this width only
RANK = 2


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def pairs(names: list[str], enter: int = 4, leave: int = 6) -> dict[str, Pair]:
    return {
        name: Pair(random(RANK, enter, seed=2 * i), random(leave, RANK, seed=2 * i + 1))
        for i, name in enumerate(names)
    }


def wan_names(blocks: int = 2, ends: tuple[str, ...] | None = None) -> list[str]:
    every = [end for (end,) in WAN.lists[0].linears.values() if "add_" not in end]
    return [f"blocks.{i}.{end}" for i in range(blocks) for end in ends or every]


def wan_size(name: str) -> LinearSize:
    return LinearSize(4, 6)


def back(tensors: Mapping[str, Tensor]) -> dict[str, Pair]:
    """Pairs by linear of what a converter gave."""
    return pairs_of({name.removeprefix("transformer."): x for name, x in tensors.items()})


def product(pair: Pair) -> Tensor:
    return pair.up.double() @ pair.down.double()


@pytest.mark.parametrize("ends", [None, ("attn1.to_q", "attn1.to_out.0", "ffn.net.2")])
def test_wan_comes_back_equal_through_both_converters(ends: tuple[str, ...] | None) -> None:
    ours = pairs(wan_names(ends=ends))
    named = original_pairs(ours, WAN, wan_size)
    ui = back(_convert_non_diffusers_wan_lora_to_diffusers(comfyui(named, 1.0, with_alpha=True)))
    whole = with_required(named, WAN, wan_names(), wan_size)
    musubi = back(_convert_musubi_wan_lora_to_diffusers(kohya(whole, 1.0)))
    for name, pair in ours.items():
        for read in (ui, musubi):
            assert torch.equal(read[name].down, pair.down) and torch.equal(read[name].up, pair.up)
    assert set(ui) == set(ours) and set(musubi) == set(wan_names())
    assert not any(product(musubi[name]).any() for name in set(musubi) - set(ours))


def test_wan_keeps_its_scale() -> None:
    ours = pairs(wan_names())
    named = original_pairs(ours, WAN, wan_size)
    for convert, tensors in (
        (_convert_non_diffusers_wan_lora_to_diffusers, comfyui(named, 3.5, with_alpha=True)),
        (_convert_musubi_wan_lora_to_diffusers, kohya(named, 3.5)),
    ):
        copies = {name: x.clone() for name, x in tensors.items()}  # diffusers scales in place
        read = back(convert(copies))
        assert set(read) == set(ours)
        for name, pair in read.items():
            assert torch.allclose(product(pair), 3.5 * product(ours[name]), rtol=1e-6, atol=1e-6)


def test_names_of_other_programs() -> None:
    named = original_pairs(
        pairs(["blocks.3.attn1.to_out.0", "blocks.3.ffn.net.0.proj"]), WAN, wan_size
    )
    assert set(comfyui(named, 2.0, with_alpha=True)) == {
        f"diffusion_model.blocks.3.{linear}.{end}"
        for linear in ("self_attn.o", "ffn.0")
        for end in ("lora_A.weight", "lora_B.weight", "alpha")
    }
    flat = kohya(named, 2.0)
    assert set(flat) == {
        f"lora_unet_blocks_3_{linear}.{end}"
        for linear in ("self_attn_o", "ffn_0")
        for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    assert flat["lora_unet_blocks_3_ffn_0.alpha"].item() == 2.0 * RANK
    with pytest.raises(KeyError):
        original_pairs(pairs(["blocks.3.attn3.to_q"]), WAN, wan_size)


def hunyuan_size(name: str) -> LinearSize:
    return LinearSize(4, MLP if name.endswith("proj_mlp") else WIDTH)


def hunyuan_names(*skipped: str) -> list[str]:
    return [
        f"{blocks.diffusers}.1.{end}"
        for blocks in HUNYUAN.lists
        for ends in blocks.linears.values()
        for end in ends
        if not end.endswith(skipped or ("\0",))
    ]


@pytest.mark.parametrize("skipped", [(), ("to_k", "proj_mlp"), ("to_q", "to_k", "to_v")])
def test_hunyuan_comes_back_equal_through_the_converter(skipped: tuple[str, ...]) -> None:
    ours = {
        name: Pair(random(RANK, 4, seed=i), random(hunyuan_size(name).outputs, RANK, seed=-i - 1))
        for i, name in enumerate(hunyuan_names(*skipped))
    }
    named = original_pairs(ours, HUNYUAN, hunyuan_size)
    joined = sum(name.endswith(("to_q", "to_k", "to_v")) for name in ours if "single" not in name)
    if joined:
        assert named["double_blocks.1.img_attn_qkv"].rank == joined * RANK
    read = back(_convert_hunyuan_video_lora_to_diffusers(comfyui(named, 1.0, with_alpha=False)))
    for name, pair in read.items():  # what was not adapted comes back as zeros
        wanted = product(ours[name]) if name in ours else torch.zeros_like(product(pair))
        assert torch.equal(product(pair), wanted), name
    assert set(ours) <= set(read)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=2, max_size=5).filter(
        lambda parts: any(rank for _, rank in parts)
    )
)
def test_joined_linears_are_exactly_the_linears(parts: list[tuple[int, int]]) -> None:
    made = [
        Pair(random(rank, 3, seed=i), random(width, rank, seed=-i - 1)) if rank else None
        for i, (width, rank) in enumerate(parts)
    ]
    whole = fuse(made, [width for width, _ in parts])
    assert whole.rank == sum(rank for _, rank in parts)
    rows = product(whole).split([width for width, _ in parts])
    for part, got in zip(made, rows, strict=True):
        assert torch.equal(got, torch.zeros_like(got) if part is None else product(part))


@pytest.mark.parametrize(
    "family,model",
    [
        (WAN, WanTransformer3DModel),
        (HUNYUAN, HunyuanVideoTransformer3DModel),
    ],
)
def test_every_linear_of_a_block_has_a_name_there(family: Family, model: type) -> None:
    with torch.device("meta"):
        made = model(num_layers=2) if family is WAN else model(num_layers=2, num_single_layers=2)
    lists = tuple(f"{blocks.diffusers}." for blocks in family.lists)
    linears = [
        name
        for name, module in made.named_modules()
        if isinstance(module, torch.nn.Linear) and name.startswith(lists)
    ]
    places = [family.original(name) for name in linears]
    assert len(linears) > 15 and all(places)
    for name, place in zip(linears, places, strict=True):
        assert place is not None
        assert name in place.members and family.members(place.name) == place.members
        assert family.dotted(place.name.replace(".", "_")) == place.name
    assert family.original("proj_out") is None and family.dotted("proj_out") is None
    assert linear_kind("blocks.11.ffn.net.0.proj") == "blocks.ffn.net.0.proj"
