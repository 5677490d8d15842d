"""A stream begun again `reach` latents back is the stream that never stopped, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from longtake.backbones.codecs.autoencoder import TinyAutoencoderCodec
from longtake.backbones.codecs.dct import DctCodec
from longtake.backbones.codecs.specs import Dct, TinyAutoencoder
from longtake.core.cache.encode import LowResEncoder
from longtake.core.interfaces.codec import Codec
from longtake.core.values.grid import Rate

from ..backbones.vaes import (
    HUNYUAN,
    NEW,
    OLD,
    diffusers_hunyuan,
    diffusers_wan,
    hunyuan_codec,
    video,
    wan_codec,
)


def made(name: str, folder: Path) -> Codec[Any]:
    if name == "dct":
        return DctCodec(Dct(channels=16))
    if name == "tiny-ae":
        return TinyAutoencoderCodec(TinyAutoencoder(weights=None, channels=4, width=8))
    if name == "hunyuan":
        return hunyuan_codec(diffusers_hunyuan(HUNYUAN), HUNYUAN, folder)
    spec = OLD if name == "wan2.1" else NEW
    return wan_codec(diffusers_wan(spec), spec, folder)


CODECS = (
    "dct",
    "tiny-ae",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("wan2.1", "wan2.2", "hunyuan")),
)


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def counted(state: dict[str, Any]) -> dict[str, Any]:
    """The state without a count of latents, of which only `none yet` matters."""
    return {key: x for key, x in state.items() if not key.endswith("latents")}


@pytest.mark.parametrize("name", CODECS)
@torch.no_grad()
def test_a_decoder_begun_again_has_the_state_that_it_had(name: str, tmp_path: Path) -> None:
    codec = made(name, tmp_path)
    assert codec.decode_reach is not None
    total = codec.decode_reach + 7
    side = 2
    latents = torch.randn(1, codec.channels, total, side, side, generator=torch.manual_seed(0))
    for place in range(total - 3, total):
        _, whole = codec.decode(latents[:, :, :place])
        first = (place - codec.decode_reach) // codec.boundary * codec.boundary
        assert first > 0
        _, again = codec.decode(latents[:, :, first:place])
        assert equal(counted(whole), counted(again))


@pytest.mark.parametrize("name", CODECS)
@torch.no_grad()
def test_an_encoder_begun_again_has_the_state_that_it_had(name: str, tmp_path: Path) -> None:
    codec = made(name, tmp_path)
    assert codec.encode_reach is not None
    total, stride = codec.encode_reach + 7, codec.stride
    pixels = video(1 + 4 * (total - 1), 2 * stride.height, 2 * stride.width)
    lowres = LowResEncoder(codec, Rate(height=1, width=1, time=1))
    for place in range(total - 3, total):
        frames = pixels[:, :, : 1 + 4 * (place - 1) + 2]  # two of a latent that is not complete
        _, whole = lowres.push(frames)
        first = (place - codec.encode_reach) // codec.boundary * codec.boundary
        assert first > 0
        again = lowres.begin_at(frames[:, :, 4 * first :], lowres.lowres.between(frames))
        assert equal(counted(whole), counted(again))


def test_the_colour_of_a_block_is_what_the_dct_decodes_to() -> None:
    codec = DctCodec(Dct(channels=16))
    latents = torch.randn(1, 16, 3, 2, 2, generator=torch.manual_seed(0), dtype=torch.float64)
    assert codec.rgb is not None
    weight, offset = codec.rgb
    pixels, _ = codec.decode(latents)
    means = pixels[:, :, 1:].unflatten(2, (2, 4)).unflatten(4, (2, 8)).unflatten(6, (2, 8))
    means = means.mean(dim=(3, 5, 7))
    colours = torch.einsum("rc,bcthw->brthw", weight, latents) + offset.view(1, 3, 1, 1, 1)
    assert torch.allclose(colours[:, :, 1:], means)
