"""A codec that is not causal: what is final, what is provisional, and that both come again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attrs import evolve

from longtake.core.cache.encode import MultiRateEncoder
from longtake.core.contract.compressor import randomize_zeros
from longtake.core.interfaces.codec import decode_whole, from_bytes, to_bytes
from longtake.core.interfaces.compressor import Fit, MemoryEncoder, Needs
from longtake.core.take.folder import Recipe, TakeFolder
from longtake.core.take.order import Entry, Order
from longtake.core.take.past import Past, links_of, whole_memory
from longtake.core.values.grid import Geometry, Rate, Size3
from longtake.core.values.history import History
from longtake.core.video.write import count_frames
from longtake.plugins.compressors.conv import ConvCompressor
from longtake.plugins.compressors.specs import Conv

from ..backbones.vaes import HUNYUAN, diffusers_hunyuan, hunyuan_codec

R222 = Rate(height=2, width=2, time=2)
COUNTS = (9, 4, 4)


class Made:
    """A take of random latents in a folder, and the codec and φ that follow it."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.codec: Any = hunyuan_codec(diffusers_hunyuan(HUNYUAN), HUNYUAN, folder)
        geometry = Geometry(
            channels=4, vae_stride=Size3(time=4, height=8, width=8),
            patch=Size3(time=1, height=1, width=1), width=16, blocks=1, fps=8.0,
        )  # fmt: skip
        torch.manual_seed(0)
        spec = Conv(rate=R222, channels=(4, 6), heads=2, head_width=4)
        fit = Fit(
            geometry=geometry, patch_weight=torch.randn(16, 4, 1, 1, 1), patch_bias=torch.randn(16)
        )
        self.encoder = MemoryEncoder([randomize_zeros(ConvCompressor(spec, fit))]).eval()
        identity = {"codec": "hunyuan"}
        self.folder = TakeFolder.create(
            root, {"identity": identity, "latent_size": [2, 4], "size": [16, 32], "fps": 8.0}
        )
        generator = torch.Generator().manual_seed(0)
        order, hashes = Order(), []
        for number, count in enumerate(COUNTS, start=1):
            entries = (*order.entries, Entry(prompt="", seed=0, latents=count))
            order = evolve(order, entries=entries)
            recipe = Recipe(
                number=number, first=order.first(number), count=count,
                past=self.folder.chain(hashes), facts={},
            )  # fmt: skip
            latents = torch.randn(1, 4, count, 2, 4, generator=generator)
            segment = self.folder.commit(recipe, latents, {}, header={})
            hashes.append(segment.latents_hash)
            order = order.with_id(number, segment.id)
        self.order = order
        self.folder.write_order(order)

    def past(self, until: int = len(COUNTS)) -> Past:
        return Past(
            folder=self.folder, codec=self.codec, encoder=lambda: self.encoder,
            needs=Needs(rates=frozenset({R222})), device=torch.device("cpu"),
            links=links_of(self.folder, self.order)[:until],
        )  # fmt: skip

    def latents(self, until: int = len(COUNTS)) -> torch.Tensor:
        past = self.past(until)
        return torch.cat([past.latents(i) for i in range(until)], dim=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    root = tmp_path_factory.mktemp("hunyuan")
    yield Made(root / "take", root / "vae")


def tokens(past: Past) -> torch.Tensor:
    part = whole_memory(*past.memory()).joined()
    assert part is not None
    return part.tokens


@torch.no_grad()
@pytest.mark.parametrize("until", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_memory_behind_the_lag_is_that_of_the_whole(made: Made, until: int) -> None:
    past, latents = made.past(until), made.latents(until)
    past.follow()
    assert past.stepped < past.end  # some latents have no final LR latent yet
    frames = to_bytes(decode_whole(made.codec, latents))
    lowres = MultiRateEncoder.of(made.codec, [R222])
    lowres.push(from_bytes(frames))
    whole = made.encoder(History(latents=latents, lr=lowres.joined())).joined()
    assert whole is not None
    assert torch.allclose(tokens(past), whole.tokens, atol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_clips_and_what_is_held_back_are_the_whole_video(made: Made) -> None:
    past = made.past()
    past.follow()
    rest = past.rest()
    assert rest is not None
    counts = [count_frames(past.clip(i)) or 0 for i in range(len(COUNTS))]
    assert sum(counts) + rest.pixels.shape[2] == 1 + 4 * (sum(COUNTS) - 1)
    pixels = to_bytes(decode_whole(made.codec, made.latents()))
    again = [made.past().decoding.frames(i).pixels for i in range(len(COUNTS))]
    joined = torch.cat([*again, rest.pixels], dim=2)
    assert (joined.int() - pixels.int()).abs().max() <= 1


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("keep", [0, 1, 2])
def test_what_follows_comes_again_bit_for_bit(made: Made, keep: int) -> None:
    """Streams that begin in the middle, behind `keep` segments, give the same."""
    past = made.past()
    past.follow()
    before, rest = tokens(past), past.rest()
    files = {p: p.read_bytes() for p in sorted((made.folder.root / "cache").rglob("*.*"))}
    for link in past.links[keep:]:
        shutil.rmtree(made.folder.cache_path(link.id))
    again = made.past()
    again.follow()
    assert torch.equal(tokens(again), before)
    assert {p: p.read_bytes() for p in files} == files
    other = again.rest()
    assert rest is not None and other is not None
    assert np.array_equal(rest.pixels.numpy(), other.pixels.numpy())
