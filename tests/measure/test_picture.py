"""The picture: every row and column is in it, with a credit, and bad paths are refused."""

from __future__ import annotations

import attrs
import numpy as np
import pytest
from PIL import Image

from longtake.core.errors import UserError
from longtake.core.pages.picture import default_credit, draw_picture, save_picture


@pytest.mark.slow
def test_it_holds_rows_columns_and_the_credit(tmp_path, strips):
    path = save_picture(strips[:2], tmp_path / "new" / "out.png", credit="by me", width=96)
    picture = Image.open(path)
    assert [p.name for p in path.parent.iterdir()] == ["out.png"]
    bare = draw_picture(strips[:2], credit="", width=96)
    assert picture.width == bare.width > 150 + 3 * 96 and picture.height > bare.height
    assert picture.height > 2 * 5 * 64
    whole = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(whole, axis=0)) > 200 and (whole == 255).all(1).mean() > 0.1


def test_its_frames_are_the_frames(tmp_path, strips):
    strip = strips[0]
    picture = np.asarray(draw_picture([strip], credit="", width=96)).astype(int)
    for row in strip.rows:
        frame = row.frames[1].permute(1, 2, 0).numpy().astype(int)
        spots = np.lib.stride_tricks.sliding_window_view(picture[..., 0], (64, 96))
        across = 16 + 150 + 100
        gaps = [np.abs(spots[top, across] - frame[..., 0]).max() for top in range(len(spots))]
        assert min(gaps) == 0, row.label


def test_clips_credit_themselves_where_nobody_is_named(strips):
    said = default_credit([attrs.evolve(strips[0], title="a", caption="a walk")])
    assert said == "Clips: a: a walk."


@pytest.mark.parametrize("name", ["out.gif", "out", "out.jpg.txt"])
def test_other_endings_are_refused(tmp_path, strips, name):
    with pytest.raises(UserError, match="ends in .jpg"):
        save_picture(strips, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_no_clip_is_no_picture(tmp_path):
    with pytest.raises(UserError, match="at least one clip"):
        save_picture([], tmp_path / "out.png")
