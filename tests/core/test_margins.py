"""Margins of causal codecs, measured on pixels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longtake.backbones.codecs.dct import DctCodec
from longtake.backbones.codecs.specs import Dct
from longtake.core.interfaces.codec import HALF_A_LEVEL, Margins, measure_margins
from longtake.core.interfaces.compressor import State

DCT = Dct(channels=16)


def video(latents: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, 1 + 4 * (latents - 1), 8, 8, generator=generator) * 2 - 1


class Fading(DctCodec):
    """Adds to a latent's frames a trace that every latent leaves and that halves with each step."""

    margin = 99

    def decode(self, chunk: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        pixels, after = super().decode(chunk, state)
        trace = torch.ones(()) if state is None else state["trace"]
        frames = []
        for index in range(chunk.shape[2]):
            count = 1 if index == 0 and state is None else 4
            frames += [trace] * count
            trace = trace / 2
        return pixels + torch.stack(frames)[:, None, None], after | {"trace": trace}


class Following(DctCodec):
    """A latent is the sum of its own and of the three before."""

    def encode(self, chunk: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        latents, after = super().encode(chunk, state)
        before = latents.new_zeros(1, 16, 3, 1, 1) if state is None else state["before"]
        longer = torch.cat([before, latents], dim=2)
        return longer.unfold(2, 4, 1).sum(dim=-1), after | {"before": longer[:, :, -3:]}


def test_a_codec_without_memory_has_the_margin_of_its_first_latent() -> None:
    assert measure_margins(DctCodec(DCT), video(6)) == Margins(margin=1, encode_margin=1)


def test_the_margin_is_where_a_difference_falls_below_the_tolerance() -> None:
    """A slice from latent s has a trace of 2^-j, the whole of 2^-(s+j): most off for s = 4."""
    for tolerance in (HALF_A_LEVEL, 0.1, 0.3):
        found = measure_margins(Fading(DCT), video(16), pixels=tolerance)
        wanted = next(j for j in range(1, 16) if 2.0**-j * (1 - 2.0**-4) <= tolerance)
        assert found == Margins(margin=wanted, encode_margin=1, pixels=tolerance)


def test_a_difference_that_stays_gives_the_bound() -> None:
    assert measure_margins(Fading(DCT), video(6), pixels=1e-9).margin == 99
    assert measure_margins(Fading(DCT), video(2)).margin == 99, "nothing was seen"


def test_latents_that_follow_others_differ_for_as_long() -> None:
    assert measure_margins(Following(DCT), video(9)).encode_margin == 4
    assert measure_margins(Following(DCT), video(9), latents=-1.0).encode_margin is None


def test_what_cannot_be_measured_is_refused() -> None:
    class Tiled(DctCodec):
        causal = False

    for codec, latents in ((Tiled(DCT), 5), (DctCodec(DCT), 1)):
        with pytest.raises(ValueError, match="causal codec, on two latents or more"):
            measure_margins(codec, video(latents))
