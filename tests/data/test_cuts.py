"""Hard cuts are found at the very frame, on the clock of the reader, and nothing else is."""

import csv
import sys
from fractions import Fraction
from importlib.util import find_spec
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.errors import UserError
from longtake.core.video.cuts import detect_cuts
from longtake.core.video.decode import VideoError
from longtake.core.video.read import read_frames

cuts_extra = pytest.mark.skipif(find_spec("scenedetect") is None, reason="needs longtake[cuts]")
SIZE = (48, 80)


def scene(seed, number):
    """Frame `number` of a shot: rough ground that moves by a pixel a frame."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(30, 225, 3)
    ground = rng.integers(-25, 26, (SIZE[0], 2 * SIZE[1], 1)) + colour
    return np.clip(ground[:, number % SIZE[1] :][:, : SIZE[1]], 0, 255).astype(np.uint8)


def write(path, pictures, stamps, codec="libx264"):
    """Write pictures that are shown at `stamps`, milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
        for picture, stamp in zip(pictures, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shots(lengths, first=1):
    return [scene(first + k, n) for k, length in enumerate(lengths) for n in range(length)]


@pytest.mark.slow
@cuts_extra
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts"])
@pytest.mark.parametrize("late", [0, 5000])
def test_a_cut_is_the_time_of_the_first_frame_of_a_shot(tmp_path, name, late):
    """At 25 fps from wherever the file's clock begins; reading at the cut gives the new shot."""
    path = write(tmp_path / name, shots([20, 13, 30]), [late + 40 * k for k in range(63)])
    found = detect_cuts(path)
    assert found == pytest.approx((0.8, 1.32), abs=1e-4)
    colours = read_frames(path, fps=25).frames.mean((1, 2))
    for cut in found:
        at = round(cut * 25)
        assert np.abs(colours[at] - colours[at - 1]).max() > 15
        assert np.abs(colours[at] - colours[at + 1]).max() < 3


@pytest.mark.slow
@cuts_extra
@settings(max_examples=8, deadline=None)
@given(
    gaps=st.lists(st.integers(20, 90), min_size=60, max_size=60),
    lengths=st.lists(st.integers(18, 25), min_size=1, max_size=3),
)
def test_uneven_frames_are_cut_by_their_own_clock(tmp_path_factory, gaps, lengths):
    pictures = shots(lengths)[:60]
    stamps = [0, *np.cumsum(gaps).tolist()][: len(pictures)]
    path = write(tmp_path_factory.mktemp("vfr") / "v.mkv", pictures, stamps, "ffv1")
    begins = [b for b in np.cumsum(lengths)[:-1].tolist() if b < len(pictures) - 2]
    assert detect_cuts(path) == pytest.approx([stamps[b] / 1000 for b in begins], abs=1e-4)


@cuts_extra
def test_what_is_no_cut(tmp_path):
    """Movement, a slow change of light and one flat picture are no cuts; nor is a single frame."""
    steps = [k * 40 for k in range(50)]
    moving = write(tmp_path / "moving.mp4", shots([50]), steps)
    light = [np.full((*SIZE, 3), 20 + 4 * k, np.uint8) for k in range(50)]
    flat = [light[3]] * 50
    for path in (
        moving,
        write(tmp_path / "l.mp4", light, steps),
        write(tmp_path / "f.mp4", flat, steps),
    ):
        assert detect_cuts(path) == ()
    assert detect_cuts(write(tmp_path / "one.mp4", light[:1], [0])) == ()


@cuts_extra
def test_odd_videos(tmp_path):
    """A pixel, a clock that stands still, a file cut off, and none at all."""
    pixels = [np.full((1, 1, 3), 10 if k < 20 else 240, np.uint8) for k in range(40)]
    stamps = [k * 40 for k in range(40)]
    assert detect_cuts(write(tmp_path / "p.mkv", pixels, stamps, "ffv1")) == (0.8,)
    still = [0, *([40] * 5), *(80 + 40 * k for k in range(34))]
    assert len(detect_cuts(write(tmp_path / "s.mkv", pixels, still, "ffv1"))) == 1
    whole = write(tmp_path / "c.mkv", shots([20, 20, 20]), [k * 40 for k in range(60)], "ffv1")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    assert detect_cuts(whole) == (0.8,)
    with pytest.raises(VideoError, match="none.mp4: no such file"):
        detect_cuts(tmp_path / "none.mp4")


@pytest.mark.parametrize("module", ["scenedetect.detectors", "scenedetect.common"])
def test_without_pyscenedetect_the_extra_is_named(tmp_path, monkeypatch, module):
    path = write(tmp_path / "v.mp4", shots([2]), [0, 40])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=r'pip install "longtake\[cuts\]"') as caught:
        detect_cuts(path)
    assert "\n" not in str(caught.value) and "PySceneDetect 0.7" in str(caught.value)


@cuts_extra
@pytest.mark.slow
@pytest.mark.video
def test_real_clips_have_the_shots_that_their_manifest_counts(video_dir):
    """Three clips counted by eye; an edit of slow transitions only has no hard cut at all."""
    with (video_dir / "manifest.csv").open() as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    for name in ("big-buck-bunny-2.mp4", "big-buck-bunny-6.mp4", "bikes-city-multishot.mp4"):
        found = detect_cuts(video_dir / rows[name]["split"] / name)
        assert len(found) + 1 == int(rows[name]["shots"])
        assert all(after - before >= 0.3 for before, after in pairwise(found))
        assert all(cut * 16 == pytest.approx(round(cut * 16)) for cut in found)
    transitions = "ffmpeg-concat-transitions.mp4"
    assert detect_cuts(video_dir / rows[transitions]["split"] / transitions) == ()
