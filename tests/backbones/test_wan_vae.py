"""Wan's VAE as a codec: streamed it equals diffusers' one pass to the bit, tiled or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.backbones.codecs.specs import WanVae
from longtake.backbones.codecs.wan import WanVaeCodec, decode_reach
from longtake.core.contract.codec import check_codec
from longtake.core.interfaces.codec import decode_among, frames_of

from .vaes import MEAN, NEW, OLD, diffusers_wan, normal, same_shapes, shown, video, wan_codec

VERSIONS = {"2.1": OLD, "2.2": NEW}
both = pytest.mark.parametrize("version", VERSIONS)


@frozen(eq=False)
class Pair:
    vae: Any  # diffusers' own
    codec: WanVaeCodec

    def __repr__(self) -> str:
        return "Pair"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    found = {}
    for version, spec in VERSIONS.items():
        vae = diffusers_wan(spec)
        found[version] = Pair(vae, wan_codec(vae, spec, tmp_path_factory.mktemp("vae")))
    return found


def streamed(step: Any, whole: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    state, parts = None, []
    for chunk in whole.split(lengths, dim=2):
        part, state = step(chunk, state)
        parts.append(part)
    return torch.cat(parts, dim=2)


chunkings = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@pytest.mark.slow
@settings(deadline=None, max_examples=6)
@given(version=st.sampled_from(list(VERSIONS)), chunks=chunkings, seed=st.integers(0, 99))
def test_streamed_in_any_chunks_equals_one_pass_of_diffusers(
    pairs: dict[str, Pair], version: str, chunks: list[int], seed: int
) -> None:
    pair, latents = pairs[version], sum(chunks)
    pixels = video(1 + 4 * (latents - 1), 16, 32, seed)
    frames = [4 * n - (0 if i else 3) for i, n in enumerate(chunks)]
    coded = streamed(pair.codec.encode, pixels, frames)
    same = same_shapes(pair.vae)
    assert float((coded - normal(same, pixels)).abs().max()) == 0.0
    assert torch.allclose(coded, normal(pair.vae, pixels), atol=1e-5)
    back = streamed(pair.codec.decode, coded, chunks).clamp(-1, 1)
    assert float((back - shown(same, coded)).abs().max()) == 0.0
    assert torch.allclose(back, shown(pair.vae, coded), atol=1e-4)


@pytest.mark.slow
@both
def test_keeps_the_contract(pairs: dict[str, Pair], version: str) -> None:
    check_codec(pairs[version].codec, cells=(1, 2), tolerance=0, trained=False)


@pytest.mark.slow
@both
@pytest.mark.parametrize(("tile", "overlap"), [(32, 16), (48, 16), (32, 0)])
def test_tiles_equal_those_of_diffusers(
    pairs: dict[str, Pair], version: str, tile: int, overlap: int
) -> None:
    vae = diffusers_wan(VERSIONS[version])
    vae.enable_tiling(tile, tile, tile - overlap, tile - overlap)
    codec = WanVaeCodec(evolve(pairs[version].codec.spec, tile=tile, overlap=overlap))
    pixels = video(9, 64, 80)
    coded = streamed(codec.encode, pixels, [5, 4])
    assert torch.equal(coded, normal(vae, pixels))
    assert torch.equal(streamed(codec.decode, coded, [1, 2]).clamp(-1, 1), shown(vae, coded))
    small = video(5, 32, 32)  # fits into one tile
    assert torch.equal(codec.encode(small)[0], normal(same_shapes(pairs[version].vae), small))


@pytest.mark.slow
def test_tiles_keep_the_contract(pairs: dict[str, Pair]) -> None:
    codec = WanVaeCodec(evolve(pairs["2.1"].codec.spec, tile=16, overlap=0))
    check_codec(codec, cells=(2, 3), tolerance=0, trained=False)


@both
def test_the_state_does_not_grow(pairs: dict[str, Pair], version: str) -> None:
    codec = pairs[version].codec
    sizes, state = [], None
    for frames in (5, 4, 8):
        _, state = codec.encode(video(frames, 16, 16), state)
        sizes.append(sum(x.numel() for x in state.values()))
    assert sizes[0] == sizes[1] == sizes[2]
    latents, state = torch.randn(1, 4, 9, 1, 1), None
    sizes = []
    for chunk in latents.split(3, dim=2):
        _, state = codec.decode(chunk, state)
        sizes.append(sum(x.numel() for x in state.values()))
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "blocks"),
    [
        ("2.1", 1),
        pytest.param("2.1", 2, marks=pytest.mark.slow),
        pytest.param("2.2", 1, marks=pytest.mark.slow),
    ],
)
def test_the_margin_is_all_that_the_decoder_sees(tmp_path: Path, version: str, blocks: int) -> None:
    """What sees a latent that is no number is no number either."""
    spec = evolve(VERSIONS[version], blocks=blocks)
    codec = wan_codec(diffusers_wan(spec), spec, tmp_path)
    reach = decode_reach(blocks)
    assert codec.margin == reach and (blocks != 2 or reach == 38)
    latents = torch.zeros(1, 4, reach + 3, 1, 1)
    latents[:, :, 0] = torch.nan
    pixels, _ = codec.decode(latents)
    seen = pixels.isnan().flatten(3).any(3).any(1)[0].nonzero().max()
    assert int(seen) in frames_of(reach, 4)
    alone = decode_among(codec, latents, reach + 1, latents[:, :, -2:-1])
    assert not alone.isnan().any()


@both
def test_latents_are_normalised_by_the_config(pairs: dict[str, Pair], version: str) -> None:
    pair = pairs[version]
    pixels = video(1, 16, 16)
    moved = diffusers_wan(VERSIONS[version], latents_mean=[m + 1 for m in MEAN])
    difference = normal(moved, pixels) - pair.codec.encode(pixels)[0]
    std = torch.tensor(pair.vae.config.latents_std).view(1, -1, 1, 1, 1)
    assert torch.allclose(difference, -1 / std.expand_as(difference), atol=1e-5)


def test_number_types(pairs: dict[str, Pair]) -> None:
    spec = evolve(pairs["2.1"].codec.spec, dtype="bfloat16")
    codec = WanVaeCodec(spec)
    pixels = video(5, 16, 16)
    with torch.autocast("cpu", dtype=torch.float16):
        coded, state = codec.encode(pixels)
    assert coded.dtype == torch.float32 and {x.dtype for x in state.values()} == {torch.bfloat16}
    exact, _ = pairs["2.1"].codec.encode(pixels)
    assert 0 < float((coded - exact).abs().max()) < 0.1
    assert torch.equal(codec.encode(pixels)[0], coded), "autocast changed the numbers"
    doubled, _ = pairs["2.1"].codec.decode(exact.double())
    assert doubled.dtype == torch.float64
    assert codec.identity == pairs["2.1"].codec.identity + "-bfloat16"


def test_chunks_that_cannot_be_are_refused(pairs: dict[str, Pair]) -> None:
    codec = pairs["2.2"].codec
    for frames in (0, 2, 4):
        with pytest.raises(ValueError, match=r"the first chunk holds 1 \+ 4k frames, not"):
            codec.encode(video(frames, 16, 16))
    with pytest.raises(ValueError, match="multiples of 16 and 16"):
        codec.encode(video(1, 16, 24))
    with pytest.raises(ValueError, match="5 channels and 1 frames cannot be decoded: 4 channels"):
        codec.decode(torch.zeros(1, 5, 1, 1, 1))
    _, state = codec.encode(video(1, 16, 16))
    with pytest.raises(ValueError, match="later chunks hold 4k frames, not 5"):
        codec.encode(video(5, 16, 16), state)


def test_the_published_ones_have_their_shapes() -> None:
    from longtake.backbones.codecs.specs import WAN21, WAN22
    from longtake.core.values.grid import Size3

    assert (WAN21.channels, WAN21.stride) == (16, Size3(time=4, height=8, width=8))
    assert (WAN22.channels, WAN22.stride) == (48, Size3(time=4, height=16, width=16))
    with pytest.raises(ValueError, match="has four levels, not 2"):
        WanVae(levels=(1, 2))
    with pytest.raises(ValueError, match="multiple of 16"):
        WanVae(tile=250)
    with pytest.raises(ValueError, match="less than the tile"):
        WanVae(tile=64)
