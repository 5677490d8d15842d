"""Buckets: never below the area, in multiples, nearest in aspect; placements cover and say so."""

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.errors import UserError
from longtake.core.video.placement import buckets, cover, place

sides = st.integers(1, 4000)
steps = st.sampled_from([8, 16, 32])


@settings(max_examples=60, deadline=None)
@given(area=st.integers(5000, 10**6), rows=steps, columns=steps)
def test_a_bucket_holds_the_area_in_multiples_and_no_smaller_one_would(area, rows, columns):
    found = buckets(area, (rows, columns))
    assert len(set(found)) == len(found)
    for height, width in found:
        assert height % rows == 0 and width % columns == 0
        assert height * width >= area
        assert min(height * (width - columns), (height - rows) * width) < area
        assert max(height, width) <= 3 * min(height, width)


@settings(max_examples=60, deadline=None)
@given(width=sides, height=sides, area=st.integers(5000, 10**6), step=steps)
def test_a_placement_covers_its_bucket_keeps_the_aspect_and_is_centred(width, height, area, step):
    at = place(width, height, area, (step, step))
    assert (at.height, at.width) in buckets(area, (step, step))
    assert at.resized_height >= at.height and at.resized_width >= at.width
    assert at.resized_height == at.height or at.resized_width == at.width
    scale = max(at.height / height, at.width / width)
    assert (
        abs(at.resized_height - height * scale) <= 1 and abs(at.resized_width - width * scale) <= 1
    )
    for crop, resized, kept in (
        (at.crop_top, at.resized_height, at.height),
        (at.crop_left, at.resized_width, at.width),
    ):
        assert 0 <= resized - kept - 2 * crop <= 1
    assert at.upscaled == (at.resized_height > height or at.resized_width > width)


@settings(max_examples=60, deadline=None)
@given(width=st.integers(100, 2000), height=st.integers(100, 2000))
def test_the_bucket_is_the_nearest_in_log_ratio(width, height):
    at = place(width, height, 96 * 160, (16, 16))

    def distance(size):
        return abs(math.log(size[1] / size[0]) - math.log(width / height))

    assert distance((at.height, at.width)) <= min(map(distance, buckets(96 * 160, (16, 16)))) + 1e-9


def test_turning_the_video_turns_its_bucket():
    wide, tall = place(1920, 1080, 96 * 160, (16, 16)), place(1080, 1920, 96 * 160, (16, 16))
    assert (wide.height, wide.width) == (tall.width, tall.height) == (96, 176)


def test_multiples_may_differ_by_side():
    assert all(h % 32 == 0 and w % 8 == 0 for h, w in buckets(96 * 160, (32, 8)))


def test_a_placement_says_what_it_did():
    assert str(cover(512, 288, (96, 160))) == "512x288 -> 171x96 -> crop 160x96"
    assert str(cover(320, 192, (96, 160))) == "320x192 -> 160x96"
    assert str(cover(160, 96, (96, 160))) == "160x96 as it is"
    assert str(cover(164, 96, (96, 160))) == "164x96 -> crop 160x96"
    small = cover(80, 60, (96, 160))
    assert str(small) == "80x60 -> 160x120 (upscaled) -> crop 160x96" and small.upscaled


def test_a_panorama_is_cropped_to_the_flattest_bucket():
    at = place(4000, 200, 96 * 160, (16, 16))
    assert at.width / at.height <= 3 and at.crop_left > 0
    flatter = place(4000, 200, 96 * 160, (16, 16), max_aspect=6.0)
    assert flatter.width / flatter.height > 3


@pytest.mark.parametrize(
    ("width", "height", "area", "multiple"),
    [(0, 10, 100, (8, 8)), (10, 10, 0, (8, 8)), (10, 10, 100, (0, 8)), (10, 10, 9, (256, 1))],
)
def test_impossible_input_is_one_clear_line(width, height, area, multiple):
    with pytest.raises(UserError) as caught:
        place(width, height, area, multiple)
    assert "\n" not in str(caught.value)


def test_the_module_is_light():
    code = (
        "import sys, longtake.core.video.placement; "
        "print({'torch', 'numpy', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
