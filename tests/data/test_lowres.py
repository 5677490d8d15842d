from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.backbones.codecs.dct import DctCodec
from longtake.backbones.codecs.specs import Dct
from longtake.core.cache.encode import LowRes, LowResEncoder
from longtake.core.interfaces.compressor import State
from longtake.core.values.grid import Rate, Size3

from ..small import encode_lowres

STRIDE = Size3(time=4, height=8, width=8)
RATES = [Rate(height=2, width=2, time=2), Rate(height=4, width=2, time=8), Rate.parse("1x1x1")]
CODEC = DctCodec(Dct(channels=16))


def video(frames: int, height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.rand(2, 3, frames, height, width, generator=generator, dtype=torch.float64)


def shrunk(rate: Rate, pixels: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    lowres, parts = LowRes(rate, STRIDE), []
    state: State | None = None
    for chunk in pixels.split(lengths, dim=2):
        part, state = lowres.push(chunk, state)
        parts.append(part)
    return torch.cat(parts, dim=2)


def test_frames_are_the_means_that_the_design_says() -> None:
    rate, pixels = Rate(height=2, width=4, time=2), video(8, 16, 32)
    found = shrunk(rate, pixels, [8])
    assert found.shape == (2, 3, 4, 8, 8)
    boxes = pixels.unfold(3, 2, 2).unfold(4, 4, 4).mean(dim=(-2, -1))
    assert torch.allclose(found[:, :, 0], boxes[:, :, 0])
    for i in (1, 2, 3):
        assert torch.allclose(found[:, :, i], boxes[:, :, 2 * i - 1 : 2 * i + 1].mean(dim=2))


def test_edges_are_repeated_to_whole_latent_cells() -> None:
    rate = Rate(height=4, width=4, time=1)
    found = shrunk(rate, video(1, 40, 33), [1])
    assert found.shape[-2:] == (16, 16)  # 5 HR rows give 2 LR rows; LR cells of 8 pixels
    assert torch.allclose(found[..., 10:, :], found[..., 10:11, :].expand(-1, -1, -1, 6, -1))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(RATES), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_any_chunking_gives_the_same_video(rate: Rate, lengths: list[int]) -> None:
    pixels = video(sum(lengths))
    found = shrunk(rate, pixels, lengths)
    assert found.shape[2] == 1 + (sum(lengths) - 1) // rate.time
    assert torch.allclose(found, shrunk(rate, pixels, [sum(lengths)]), atol=1e-14)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(RATES), st.integers(1, 12), st.lists(st.integers(1, 15), max_size=4))
def test_latents_are_as_many_as_settled_and_any_chunking_gives_the_same(
    rate: Rate, latents: int, cuts: list[int]
) -> None:
    frames = 1 + 4 * (latents - 1)
    pixels = video(frames, 24, 40)
    whole = encode_lowres(CODEC, rate, [pixels])
    size = rate.lr_size(Size3(time=latents, height=3, width=5))
    assert whole.shape == (2, 16, size.time, size.height, size.width)
    assert whole.shape[2] == 1 + (latents - 1) // rate.time
    ends = sorted({min(cut, frames) for cut in cuts} | {0, frames})
    chunks = [pixels[:, :, a:b] for a, b in zip(ends, ends[1:], strict=False)]
    assert torch.allclose(encode_lowres(CODEC, rate, chunks), whole, atol=1e-12)


@pytest.mark.parametrize("rate", RATES)
def test_each_latent_comes_with_the_hr_latent_that_completes_it(rate: Rate) -> None:
    encoder = LowResEncoder(CODEC, rate)
    state: State | None = None
    for latent in range(2 * rate.time + 2):
        chunk = video(4 if latent else 1)
        before = None if state is None else {k: x.clone() for k, x in state.items()}
        out, after = encoder.push(chunk, state)
        assert out.shape[2] == (1 if latent % rate.time == 0 else 0)
        assert out.shape[1] == 16
        assert all(torch.equal(state[k], before[k]) for k in before or {} if state and before)
        assert after["frames"].shape[2] < 4
        assert after["lowres.waiting"].shape[2] < rate.time
        state = after


def test_rate_of_one_is_the_codec_itself() -> None:
    pixels = video(9)
    hr, _ = CODEC.encode(pixels)
    assert torch.allclose(encode_lowres(CODEC, Rate.parse("1x1x1"), [pixels]), hr)


def test_lr_cells_stand_over_the_hr_cells_that_they_cover() -> None:
    """A change in HR column 5 is seen by LR column ⌊5 / 2⌋ and by no other."""
    rate = Rate(height=1, width=2, time=1)
    pixels = video(1, 8, 56)
    other = pixels.clone()
    other[..., 5 * 8 : 6 * 8] += 1.0
    one, two = (encode_lowres(CODEC, rate, [x]) for x in (pixels, other))
    moved = (one - two).abs().amax(dim=(0, 1, 2, 3)) > 1e-9
    assert moved.tolist() == [False, False, True, False]
    assert one.shape[-1] == math.ceil(7 / 2)


def test_bad_chunks_are_refused() -> None:
    lowres = LowRes(RATES[0], STRIDE)
    with pytest.raises(ValueError, match="one frame or more"):
        lowres.push(video(1)[:, :, :0])
    with pytest.raises(ValueError, match="floats"):
        lowres.push(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8))
    _, state = lowres.push(video(4))
    with pytest.raises(ValueError, match="another size"):
        lowres.push(video(1, 64, 64), state)
