"""`longtake show --picture`: what the masker does to a clip, as a picture and as the data of it."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

from longtake.core.errors import LongtakeError, UserError
from longtake.core.pages.masker import (
    CELLS,
    LATENTS,
    draw_masker,
    lr_spans,
    mask_clip,
    save_masker_picture,
    title_of,
)
from longtake.core.values.grid import Rate, Size3
from longtake.core.video.write import write_video
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.maskers.specs import Drop, Noise, Scale, Unmasked

from ..small import moving, small

R442 = Rate.parse("4x4x2")
EXPERIMENT = attrs.evolve(small(), compressors=(Conv(rate=Rate.parse("2x2x4")), Conv(rate=R442)))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dark second, then a bright one, at 8 frames a second."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = [np.full((36, 64, 3), 30 if k < 9 else 220, np.uint8) for k in range(17)]
    write_video(path, iter(frames), 8)
    return path


@pytest.mark.slow
def test_the_built_in_clip_is_masked_at_every_rate_of_the_experiment() -> None:
    found = mask_clip(attrs.evolve(EXPERIMENT, masker=Noise(clean=1.0, counts=(2,))))
    assert found.clean.shape == (LATENTS, 3, *CELLS)
    grid = Size3(time=LATENTS, height=CELLS[0], width=CELLS[1])
    for rate in (Rate.parse("2x2x4"), R442):
        size = rate.lr_size(grid)
        assert found.lr[rate].shape == (size.time, 3, size.height, size.width)
    hidden = found.query.levels[0] > 0  # masked for certain, though clean=1 would leave it
    assert int(hidden.sum()) == LATENTS - 2
    changed = (found.clean != found.masked).flatten(1).any(dim=1)
    assert torch.equal(changed, hidden)


def test_colours_are_the_videos_and_seconds_those_of_its_latents(clip: Path) -> None:
    found = mask_clip(attrs.evolve(EXPERIMENT, masker=Unmasked()), video=clip)
    assert torch.equal(found.clean, found.masked)
    light = found.clean.mean(dim=(1, 2, 3))
    assert float(light[:3].max()) < 0.2 and float(light[3:].min()) > 0.8
    assert found.seconds == [1 / 8, 5 / 8, 9 / 8, 13 / 8, 17 / 8]


@pytest.mark.slow
def test_scaled_values_lose_contrast_as_told() -> None:
    found = mask_clip(attrs.evolve(EXPERIMENT, masker=Scale()))
    middle = found.clean.mean(dim=(0, 2, 3), keepdim=True)
    for level, before, after in zip(found.query.levels[0], found.clean, found.masked, strict=True):
        want = (middle[0] + (1 - level) * (before - middle[0])).clamp(0, 1)
        assert torch.allclose(after, want, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "ending", ["png", *(pytest.param(e, marks=pytest.mark.slow) for e in ("jpg", "svg", "pdf"))]
)
def test_a_picture_is_written_whole(tmp_path: Path, clip: Path, ending: str) -> None:
    experiment = attrs.evolve(EXPERIMENT, masker=Drop(where="last"))
    path = save_masker_picture(experiment, tmp_path / "new" / f"mask.{ending}", video=clip)
    assert path.stat().st_size > 2000 and [p.name for p in path.parent.iterdir()] == [path.name]
    if ending == "png":
        with Image.open(path) as image:
            assert min(image.size) > 300


def test_the_figure_frames_omega_and_draws_a_level_for_each_latent(clip: Path) -> None:
    experiment = attrs.evolve(EXPERIMENT, masker=Drop(where="last", counts=(2,)))
    found = mask_clip(experiment, video=clip)
    clean, masked, levels, *lr = draw_masker(found, title_of(experiment)).axes
    framed = [line for line in masked.lines if line.get_linewidth() == 3.0]
    assert [round(float(np.mean(line.get_xdata()[:2]))) for line in framed] == [3, 4]
    assert len(clean.images) == len(masked.images) == len(levels.patches) == 5
    assert [bar.get_height() for bar in levels.patches] == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert [len(axes.images) for axes in lr[::2]] == [2, 3]


def test_lr_latents_stand_over_what_they_cover() -> None:
    assert lr_spans(Rate.parse("2x2x4"), 3) == [(-0.5, 0.5), (0.5, 4.5), (4.5, 8.5)]
    assert lr_spans(Rate.parse("2x2x1"), 2) == [(-0.5, 0.5), (0.5, 1.5)]


def test_the_title_names_masker_and_fields() -> None:
    said = title_of(attrs.evolve(EXPERIMENT, masker=Drop(fill="mean", clean=0.25)))
    assert said.startswith("small: masker drop (") and "clean=0.25" in said and "fill=mean" in said


def test_what_cannot_be_drawn_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mask.gif: a picture ends in .png, .jpg"):
        save_masker_picture(EXPERIMENT, tmp_path / "mask.gif")
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(LongtakeError) as found:
        save_masker_picture(EXPERIMENT, tmp_path / "mask.png", video=tmp_path / "no.mp4")
    assert len(str(found.value).splitlines()) == 1
    assert not (tmp_path / "mask.png").exists()


@pytest.mark.slow
def test_the_verb_draws_and_says_where(tmp_path: Path) -> None:
    import json

    from ..program import run

    path = tmp_path / "mask.png"
    words = ("show", "tiny-wan-2x2x2", "--set", "masker=drop", "--picture", path)
    code, out, err = run(*words, "--json")
    assert code == 0, err
    assert json.loads(out)["picture"] == str(path) and path.exists()
    code, out, _ = run(*words)
    assert code == 0 and out.rstrip().endswith(f"picture: {path}")
    code, _, err = run("show", "tiny-wan-2x2x2", "--video", path)
    assert code == 2 and err.startswith("longtake: --video is the clip of a picture")
    code, _, err = run("show", "tiny-wan-2x2x2", "--picture", tmp_path / "x.gif")
    assert code == 2 and len(err.splitlines()) == 1


def test_a_short_moving_clip_can_be_looked_at(tmp_path: Path) -> None:
    write_video(tmp_path / "short.mp4", moving(1, seconds=0.25), 8)
    found = mask_clip(EXPERIMENT, video=tmp_path / "short.mp4")
    assert len(found.seconds) == 1 and found.lr[R442].shape[0] == 1
