"""A crop of cached latents is what encoding the cropped video gives, where the codec is local."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.backbones.codecs.specs import Dct
from longtake.core.data.store import Store
from longtake.core.data.windows import Area, Crops, WindowBatches, WindowSampler, crop
from longtake.core.interfaces.codec import from_bytes
from longtake.core.model import compressor_needs
from longtake.core.registry import build
from longtake.core.values.grid import Rate
from longtake.core.values.history import History

from ..small import encode_lowres, make_store, small

RATES = (Rate(height=2, width=2, time=2), Rate(height=4, width=4, time=2))


def encoded(frames: torch.Tensor) -> History:
    codec, pixels = build(Dct(channels=16)), from_bytes(frames)
    latents, _ = codec.encode(pixels)
    lr = {rate: encode_lowres(codec, rate, [pixels]) for rate in RATES}
    return History(latents=latents, lr=lr, pixels=frames)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    top=st.integers(0, 1), left=st.integers(0, 2), height=st.integers(1, 8), width=st.integers(1, 8)
)
def test_equals_encoding_the_cropped_video(top: int, left: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(top + 3 * left)
    frames = torch.randint(0, 256, (1, 3, 9, 128, 192), generator=generator, dtype=torch.uint8)
    # inner edges on whole LR cells: beyond them the box mean of a crop pads, that of a frame sees
    area = Area(
        top=8 * top, left=8 * left, height=4 * ((height + 3) // 4), width=4 * ((width + 3) // 4)
    )
    found = crop(encoded(frames), area)
    rows = slice(8 * area.top, 8 * (area.top + area.height))
    columns = slice(8 * area.left, 8 * (area.left + area.width))
    wanted = encoded(frames[..., rows, columns])
    torch.testing.assert_close(found.latents, wanted.latents)
    assert torch.equal(found.pixels, wanted.pixels)
    for rate in RATES:
        torch.testing.assert_close(found.lr[rate], wanted.lr[rate])


def test_corners_stand_on_token_cells_and_cover_the_frame(tmp_path: Path) -> None:
    experiment = small()
    opened = Store.open(make_store(tmp_path, experiment, (1,)))
    record = evolve(opened.records[0], height=18, width=32)
    geometry = experiment.backbone.geometry
    crops = Crops.of((8, 16), geometry, frozenset(RATES))
    drawn = [crops.draw(random.Random(seed), record) for seed in range(60)]
    assert {a.top for a in drawn} == {0, 8} and {a.left for a in drawn} == {0, 8, 16}
    assert all((a.height, a.width) == (8, 16) for a in drawn)
    small_frame = crops.draw(random.Random(0), evolve(record, height=4, width=6))
    assert small_frame == Area(top=0, left=0, height=4, width=6)


def test_batches_are_crops_and_the_same_again(tmp_path: Path) -> None:
    experiment = small(crop=(2, 4))
    opened, needs = Store.open(make_store(tmp_path, experiment)), compressor_needs(experiment)
    windows = WindowSampler.of(opened, experiment.backbone.geometry, experiment.train, needs)
    one, two = (WindowBatches(opened, windows, needs, 9)[step] for step in (3, 3))
    assert one.history.latents.shape[-2:] == (2, 4)
    assert one.history.lr[RATES[0]].shape[-2:] == (1, 2)
    assert torch.equal(one.history.latents, two.history.latents)


@pytest.mark.parametrize("size", [(0, 4), (-2, 2)])
def test_half_a_crop_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="two numbers of latents"):
        small(crop=size)
