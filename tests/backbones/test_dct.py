from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.backbones.codecs import dct
from longtake.backbones.codecs.dct import DctCodec, constants, full_basis
from longtake.backbones.codecs.specs import Dct
from longtake.core.contract.codec import check_codec
from longtake.core.interfaces.codec import from_bytes
from longtake.core.video.read import read_frames
from longtake.core.video.write import write_video
from longtake.experiments import fit_dct as dct_fit

BOTH = pytest.mark.parametrize("channels", [16, 48])


def noise(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1


@BOTH
def test_keeps_the_contract(channels: int) -> None:
    check_codec(DctCodec(Dct(channels=channels)), tolerance=1e-12)


def test_contract_catches_a_codec_whose_state_does_nothing() -> None:
    class Forgetful(DctCodec):
        def decode(self, chunk, state=None):  # type: ignore[no-untyped-def]
            return super().decode(chunk, None)

    with pytest.raises(AssertionError, match="decode streamed in chunks"):
        check_codec(Forgetful(Dct()))


class Decodes(DctCodec):
    """What is decoded comes back otherwise."""

    def change(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, chunk, state=None):  # type: ignore[no-untyped-def]
        pixels, after = super().decode(chunk, state)
        return self.change(pixels), after


class Negated(Decodes):
    def change(self, pixels: Tensor) -> Tensor:
        return -pixels


class Bgr(Decodes):
    def change(self, pixels: Tensor) -> Tensor:
        return pixels.flip(1)


class ZeroToOne(Decodes):
    def change(self, pixels: Tensor) -> Tensor:
        return (pixels + 1) / 2


class Mirrored(Decodes):
    def change(self, pixels: Tensor) -> Tensor:
        return pixels.flip(4)


class Mixing(Decodes):
    def change(self, pixels: Tensor) -> Tensor:
        return pixels + 0.1 * pixels.mean(dim=0)


class StrideAsTuple(DctCodec):
    stride: Any = (4, 8, 8)


class HalfAMargin(DctCodec):
    margin: Any = 1.5


class NumbersInState(DctCodec):
    def encode(self, chunk, state=None):  # type: ignore[no-untyped-def]
        latents, after = super().encode(chunk, state)
        return latents, {**after, "count": 3}


class WrongColours(DctCodec):
    @property
    def rgb(self) -> tuple[Tensor, Tensor]:
        return torch.full((3, self.channels), 9.0), torch.zeros(3)


class ReachesTooLittle(DctCodec):
    """Says that a latent needs none before it, but its first one gives one frame."""

    @property
    def decode_reach(self) -> int:
        return 0


class Reuses(DctCodec):
    """Has buffers by shape that it fills again; states lie in two of them in turns."""

    def __init__(self, spec: Dct) -> None:
        super().__init__(spec)
        self.kept: dict[Any, Tensor] = {}
        self.turn = 0

    def view(self, x: Tensor, *key: object) -> Tensor:
        return self.kept.setdefault((*key, *x.shape), torch.empty_like(x)).copy_(x)[...]


class ReusesLatents(Reuses):
    def encode(self, chunk, state=None):  # type: ignore[no-untyped-def]
        latents, after = super().encode(chunk, state)
        return (self.view(latents) if state is None else latents), after


class ReusesPixels(Reuses):
    def decode(self, chunk, state=None):  # type: ignore[no-untyped-def]
        pixels, after = super().decode(chunk, state)
        return (self.view(pixels) if state is None else pixels), after


class ReusesStates(Reuses):
    def encode(self, chunk, state=None):  # type: ignore[no-untyped-def]
        latents, after = super().encode(chunk, state)
        self.turn += 1
        count = torch.tensor([self.turn], dtype=torch.float64)  # no two states alike
        return latents, {**after, "count": self.view(count, self.turn % 2)}


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (ReusesLatents, "what encode gave before, by another call, was changed in place"),
        (ReusesPixels, "what decode gave before, by another call, was changed in place"),
        (ReusesStates, "a state that was returned before, by a later step, was changed in place"),
        (Negated, "farther from it than a grey one"),
        (Bgr, "farther from it than a grey one"),
        (ZeroToOne, "farther from it than a grey one"),
        (Mirrored, "farther from it than a grey one"),
        (Mixing, "decode: a sample alone and in a batch: differs"),
        (StrideAsTuple, "stride is of type tuple, must be of type Size3"),
        (HalfAMargin, "margin is of type float, must be of type int"),
        (NumbersInState, "the state is no dict of tensors"),
        (WrongColours, "rgb: the colours that it gives are farther"),
        (ReachesTooLittle, "decode_reach is 0, but a stream begun 0 latents before"),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_contract_catches_each_wrong_codec(wrong: type[DctCodec], line: str) -> None:
    with pytest.raises(AssertionError, match=line) as caught:
        check_codec(wrong(Dct(channels=16)))
    said = str(caught.value)
    assert "\n" not in said and said.startswith(f"{wrong.__name__} ({__file__}): ")


def test_contract_catches_a_state_changed_in_place() -> None:
    class Counting(DctCodec):
        def encode(self, chunk, state=None):  # type: ignore[no-untyped-def]
            latents, after = super().encode(chunk, state)
            if state is not None:
                state["latents"] += 1
            return latents, after

    with pytest.raises(AssertionError, match="changed in place"):
        check_codec(Counting(Dct()))


def test_contract_catches_a_margin_that_is_too_small() -> None:
    class Looking(DctCodec):
        """Adds to each latent's frames the mean of the latent two before."""

        def decode(self, chunk, state=None):  # type: ignore[no-untyped-def]
            pixels, after = super().decode(chunk, state)
            none = torch.zeros_like(chunk[:, :, :1]).expand(-1, -1, 2, -1, -1)
            shifted = torch.cat([none if state is None else state["two"], chunk], dim=2)
            now = shifted[:, :, : chunk.shape[2]].mean(dim=(1, 3, 4))
            bias = now.repeat_interleave(4, dim=1)[:, -pixels.shape[2] :]
            return pixels + bias[:, None, :, None, None], after | {"two": shifted[:, :, -2:]}

    with pytest.raises(AssertionError, match="margin"):
        check_codec(Looking(Dct()))


@BOTH
def test_basis_is_orthonormal_and_latents_rebuild_themselves(channels: int) -> None:
    kept = constants(channels)["basis"]
    assert torch.allclose(kept @ kept.T, torch.eye(channels).double(), atol=1e-13)
    codec = DctCodec(Dct(channels=channels))
    latents = torch.randn(1, channels, 3, 2, 2, dtype=torch.float64)
    again, _ = codec.encode(codec.decode(latents)[0])
    assert torch.allclose(again[:, :, 1:], latents[:, :, 1:], atol=1e-12)


@BOTH
def test_decoding_is_the_orthogonal_projection(channels: int) -> None:
    """No other latents of these channels give a nearer video: the error is orthogonal to them."""
    codec = DctCodec(Dct(channels=channels))
    pixels = noise(1, 3, 9, 16, 24)
    error = pixels - codec.decode(codec.encode(pixels)[0])[0]
    left, _ = codec.encode(error)
    none, _ = codec.encode(torch.zeros_like(pixels))
    assert torch.allclose(left[:, :, 1:], none[:, :, 1:], atol=1e-12)


def test_first_latent_is_frame_0_held_for_four_frames() -> None:
    codec = DctCodec(Dct())
    pixels = noise(1, 3, 1, 8, 8)
    held = pixels.expand(-1, -1, 5, -1, -1)
    latents, _ = codec.encode(held)
    assert torch.allclose(latents[:, :, 0], latents[:, :, 1], atol=1e-13)
    decoded, _ = codec.decode(latents)
    assert torch.allclose(decoded[:, :, 0], decoded[:, :, 1:].mean(dim=2), atol=1e-13)
    moving = constants(48)["places"][:, 1] > 0
    silent = -codec.mean[moving] / codec.std[moving]
    assert torch.allclose(latents[0, moving, 0, 0, 0], silent, atol=1e-12)


def test_a_smooth_ramp_survives_in_its_place_and_colour() -> None:
    codec = DctCodec(Dct())
    ramp = torch.linspace(-0.5, 0.5, 64, dtype=torch.float64).expand(1, 3, 5, 32, 64)
    ramp = ramp * torch.tensor([1.0, -0.5, 0.2]).reshape(1, 3, 1, 1, 1)
    back, _ = codec.decode(codec.encode(ramp)[0])
    assert back.shape == ramp.shape
    assert float((back - ramp).abs().max()) < 0.03


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2))
def test_odd_sizes_round_up_and_repeat_the_edge(height: int, width: int, more: int) -> None:
    codec = DctCodec(Dct(channels=16))
    pixels = noise(1, 3, 1 + 4 * more, height, width)
    latents, _ = codec.encode(pixels)
    assert latents.shape == (1, 16, 1 + more, math.ceil(height / 8), math.ceil(width / 8))
    rows = torch.arange(8 * latents.shape[3]).clamp(max=height - 1)
    columns = torch.arange(8 * latents.shape[4]).clamp(max=width - 1)
    whole, _ = codec.encode(pixels[..., rows, :][..., columns])
    assert torch.equal(latents, whole)


@pytest.mark.parametrize("frames", [0, 2, 4, 8])
def test_first_chunk_of_another_length_is_refused(frames: int) -> None:
    with pytest.raises(ValueError, match="first chunk holds 1 \\+ 4k frames"):
        DctCodec(Dct()).encode(noise(1, 3, frames, 8, 8))


@pytest.mark.parametrize("frames", [0, 1, 5])
def test_later_chunk_of_another_length_is_refused(frames: int) -> None:
    codec = DctCodec(Dct())
    _, state = codec.encode(noise(1, 3, 1, 8, 8))
    with pytest.raises(ValueError, match=f"later chunks hold 4k frames, not {frames}"):
        codec.encode(noise(1, 3, frames, 8, 8), state)


def test_bytes_and_latents_of_another_codec_are_refused() -> None:
    codec = DctCodec(Dct())
    with pytest.raises(ValueError, match="floats"):
        codec.encode(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="48 channels"):
        codec.decode(torch.zeros(1, 16, 1, 1, 1))


def test_float32_and_state_dict() -> None:
    codec = DctCodec(Dct())
    pixels = noise(1, 3, 5, 16, 16)
    exact, _ = codec.encode(pixels)
    single, _ = codec.encode(pixels.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), exact, atol=1e-4)
    assert codec.state_dict() == {}
    assert DctCodec(Dct(channels=16)).identity != codec.identity


def test_constants_are_sound_and_say_where_they_come_from() -> None:
    for channels in (16, 48):
        fitted = constants(channels)
        assert fitted["basis"].shape == (channels, 768)
        assert len({tuple(p) for p in fitted["places"].tolist()}) == channels
        assert bool((fitted["std"] > 0.05).all())
        file = Path(dct.__file__).with_name(f"dct{channels}.json")
        assert len(json.loads(file.read_text())["fitted_on"]["clips"]) > 40
    assert torch.allclose(full_basis() @ full_basis().T, torch.eye(768).double(), atol=1e-12)


def test_fit_keeps_the_strongest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = (noise(9, 16, 16, 3).numpy() * 20 + 128).astype("uint8")
    frames[:, :, ::2] += 60  # a fast horizontal wave in grey
    write_video(tmp_path / "wave.mp4", frames, fps=8.0)
    monkeypatch.setattr(dct_fit, "FORMATS", (dct_fit.ReadFormat(16, 16, 8.0, 9),))
    dct_fit.main(["--videos", str(tmp_path), "--out", str(tmp_path)])
    fitted = json.loads((tmp_path / "dct16.json").read_text())
    assert [0, 0, 0, 7] in fitted["indices"]
    assert fitted["fitted_on"]["clips"] == ["wave.mp4"]


@pytest.mark.video
@pytest.mark.parametrize(("channels", "least"), [(16, 21.0), (48, 25.0)])
def test_real_video_survives(video_dir: Path, channels: int, least: float) -> None:
    clip = video_dir / "val" / "coffee-pour.mp4"
    frames = torch.from_numpy(read_frames(clip, fps=8.0, size=(96, 160), count=17).frames)
    pixels = from_bytes(frames).permute(3, 0, 1, 2)[None]
    codec = DctCodec(Dct(channels=channels))
    latents, _ = codec.encode(pixels)
    back, _ = codec.decode(latents)
    mse = float(((back.clamp(-1, 1) - pixels) / 2).square().mean())
    assert 10 * math.log10(1 / mse) > least
    assert 0.3 < float(latents.std()) < 3.0
