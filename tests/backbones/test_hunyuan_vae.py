"""HunyuanVideo's VAE as a codec: tiles in a stream equal those of diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.backbones.codecs.hunyuan import HunyuanVaeCodec
from longtake.backbones.codecs.specs import HunyuanVae
from longtake.core.contract.codec import check_codec
from longtake.core.interfaces.codec import (
    Codec,
    decode_among,
    decode_whole,
    encode_whole,
    frames_of,
    from_bytes,
)
from longtake.core.interfaces.spec import CodecSpec
from longtake.core.train.past import PastEncoder
from longtake.core.values.grid import Rate
from longtake.core.values.history import History

from ..small import encode_lowres
from .vaes import HUNYUAN, diffusers_hunyuan, hunyuan_codec, video

TILES = ((16, 12), (8, 4), (8, 8))  # frames of a tile, and to the next


@pytest.fixture(scope="module")
def vae() -> Any:
    return diffusers_hunyuan(HUNYUAN)


@pytest.fixture(scope="module")
def codec(vae: Any, tmp_path_factory: pytest.TempPathFactory) -> HunyuanVaeCodec:
    return hunyuan_codec(vae, HUNYUAN, tmp_path_factory.mktemp("vae"))


def tiled(codec: HunyuanVaeCodec, vae: Any, frames: int, step: int) -> HunyuanVaeCodec:
    """The codec with these tiles in time, and diffusers' model set to the same."""
    vae.tile_sample_min_num_frames, vae.tile_sample_stride_num_frames = frames, step
    made = HunyuanVaeCodec(evolve(codec.spec, tile_frames=frames, tile_step=step))
    made.model = codec.vae
    return made


def coded_by(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    return vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor


def shown_by(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents / vae.config.scaling_factor).sample


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(
    tiles=st.sampled_from(TILES),
    chunks=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_streamed_in_any_chunks_equals_one_pass_of_diffusers(
    codec: HunyuanVaeCodec, vae: Any, tiles: tuple[int, int], chunks: list[int], seed: int
) -> None:
    made, latents = tiled(codec, vae, *tiles), sum(chunks)
    pixels = video(1 + 4 * (latents - 1), 8, 16, seed)
    state, parts, settled = None, [], 0
    for index, count in enumerate(chunks):
        begin = 1 + 4 * (sum(chunks[:index]) - 1) if index else 0
        part, state = made.encode(pixels[:, :, begin : begin + 4 * count - (not index) * 3], state)
        parts.append(part)
        settled += part.shape[2]
        seen = sum(chunks[: index + 1])
        rest = made.encode_rest(state)
        assert settled + (0 if rest is None else rest.shape[2]) == seen
        now = torch.cat(parts if rest is None else [*parts, rest], dim=2)
        assert torch.equal(now, coded_by(vae, pixels[:, :, : 1 + 4 * (seen - 1)]))
    state, parts = None, []
    for chunk in now.split(chunks, dim=2):
        part, state = made.decode(chunk, state)
        parts.append(part)
    rest = made.decode_rest(state)
    back = torch.cat(parts if rest is None else [*parts, rest], dim=2)
    assert torch.equal(back, shown_by(vae, now))


@pytest.mark.slow
@pytest.mark.parametrize("tiles", TILES)
def test_a_latent_among_its_neighbours_is_that_of_the_whole(
    codec: HunyuanVaeCodec, vae: Any, tiles: tuple[int, int]
) -> None:
    made = tiled(codec, vae, *tiles)
    latents = torch.randn(1, 4, 11, 1, 2, generator=torch.Generator().manual_seed(1))
    whole = decode_whole(made, latents).clamp(-1, 1)
    seen: list[int] = []
    run = made.decode
    made.decode = lambda chunk, state=None: (seen.append(chunk.shape[2]), run(chunk, state))[1]
    for index in range(11):
        at = frames_of(index, 4)
        alone = decode_among(made, latents, index, latents[:, :, index : index + 1])
        assert torch.equal(alone, whole[:, :, at.start : at.stop]), index
    assert max(seen) <= made.margin + made.boundary + made.margin_after


@pytest.mark.slow
def test_keeps_the_contract(codec: HunyuanVaeCodec, vae: Any) -> None:
    check_codec(tiled(codec, vae, 8, 4), cells=(1, 2), latents=8, tolerance=0, trained=False)


@pytest.mark.slow
def test_tiles_in_space_equal_those_of_diffusers(codec: HunyuanVaeCodec, vae: Any) -> None:
    made = HunyuanVaeCodec(evolve(codec.spec, tile=32, overlap=16, tile_frames=8, tile_step=8))
    vae.tile_sample_min_num_frames = vae.tile_sample_stride_num_frames = 8
    vae.enable_tiling(32, 32, None, 16, 16, None)
    try:
        pixels = video(13, 40, 56)
        coded = encode_whole(made, pixels)
        assert torch.equal(coded, coded_by(vae, pixels))
        assert torch.equal(decode_whole(made, coded), shown_by(vae, coded))
    finally:
        vae.disable_tiling()


def test_it_is_not_causal_and_says_so(codec: HunyuanVaeCodec) -> None:
    assert not codec.causal and codec.identity.startswith("hunyuan-vae-time16-12-")
    other = HunyuanVaeCodec(evolve(codec.spec, tile_step=8, tile=256))
    assert other.identity.startswith("hunyuan-vae-time16-8-")
    assert other.identity.endswith("-tile256-64")
    pixels = video(17, 8, 8)
    moved = torch.cat([pixels[:, :, :-1], -pixels[:, :, -1:]], dim=2)
    first, second = (encode_whole(codec, x)[:, :, 0] for x in (pixels, moved))
    assert float((first - second).abs().max()) > 1e-6, "the last frame reached the first latent"


def test_the_state_does_not_grow(codec: HunyuanVaeCodec) -> None:
    sizes, state = [], None
    for index in range(7):
        _, state = codec.encode(video(12 if index else 13, 8, 8), state)
        sizes.append(sum(x.numel() for x in state.values()))
    assert max(sizes[3:]) == max(sizes[:4])
    with pytest.raises(ValueError, match="later chunks hold 4k frames, not 1"):
        codec.encode(video(1, 8, 8), state)
    with pytest.raises(ValueError, match="3 channels"):
        codec.decode(torch.zeros(1, 3, 1, 1, 1))


def test_contract_catches_a_rest_that_is_lost(codec: HunyuanVaeCodec, vae: Any) -> None:
    class Forgetful(HunyuanVaeCodec):
        def decode_rest(self, state: Any) -> None:
            return None

    broken: Codec[CodecSpec] = Forgetful(codec.spec)
    with pytest.raises(AssertionError, match="its pixels: the shape is"):
        check_codec(broken, cells=(1, 1))


def test_contract_catches_slices_off_the_tiles(codec: HunyuanVaeCodec, vae: Any) -> None:
    made = tiled(codec, vae, 8, 8)

    class Anywhere(HunyuanVaeCodec):
        boundary = 1

    broken = Anywhere(made.spec)
    broken.model = made.model
    with pytest.raises(AssertionError, match="decoded among its 2 predecessors"):
        check_codec(broken, cells=(1, 1), latents=7, tolerance=0)


def test_tiles_that_cannot_be_are_refused() -> None:
    for frames, step in ((16, 4), (16, 20), (10, 8), (16, 10)):
        with pytest.raises(ValueError, match="half to all of the frames"):
            HunyuanVae(tile_frames=frames, tile_step=step)
    assert HunyuanVae().channels == 16 and HunyuanVae().stride.time == 4


class Frames:
    """A store of one video."""

    def __init__(self, pixels: torch.Tensor) -> None:
        self.pixels = pixels

    def frames(self, record: Any, first: int, last: int) -> torch.Tensor:
        assert 0 <= first <= last < self.pixels.shape[2]
        return self.pixels[:, :, first : last + 1]


@pytest.mark.slow
@pytest.mark.parametrize("cut,start", [(3, 0), (5, 2), (9, 0), (21, 6)])
def test_a_past_holds_nothing_of_what_follows(codec: HunyuanVaeCodec, cut: int, start: int) -> None:
    """Stage II's past is the encode of the frames up to the cut; a store's latents know more."""
    generator = torch.Generator().manual_seed(0)
    film = torch.randint(0, 256, (1, 3, 93, 16, 16), generator=generator, dtype=torch.uint8)
    rate = Rate(height=1, width=1, time=2)

    def encoded(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        floats = from_bytes(pixels)
        return encode_whole(codec, floats), encode_lowres(codec, rate, [floats])

    def past_of(pixels: torch.Tensor) -> History:
        latents, lowres = encoded(pixels)
        lr = {rate: lowres[:, :, start // 2 :]}
        window = History(latents=latents[:, :, start:], lr=lr, start=torch.tensor([start]))
        made = PastEncoder(Frames(pixels), codec)(None, window, cut - start)  # type: ignore[arg-type]
        later = made.latents[:, :, cut - start :]
        assert torch.equal(later, latents[:, :, cut:]), "the target is the store's"
        return made.chunk(0, cut - start)

    made, (whole, _) = past_of(film), encoded(film)
    known, known_lr = encoded(film[:, :, : 4 * (cut - 1) + 1])
    torch.testing.assert_close(made.latents, known[:, :, start:cut], rtol=0, atol=1e-5)
    torch.testing.assert_close(made.lr[rate], known_lr[:, :, start // 2 :], rtol=0, atol=1e-5)
    on_tiles = (cut - 5) % 3 == 0  # there a tile is full, and the next one only fades in
    holds_answer = not torch.allclose(whole[:, :, cut - 1], known[:, :, -1], atol=1e-3)
    assert holds_answer != on_tiles
    other = film.clone()
    other[:, :, 4 * (cut - 1) + 1 :] = 255 - other[:, :, 4 * (cut - 1) + 1 :]
    changed = past_of(other)
    assert torch.equal(made.latents, changed.latents)
    assert torch.equal(made.lr[rate], changed.lr[rate])
