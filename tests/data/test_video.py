"""Reading video: which source frame each output is, upright and square, in any pixel format."""

import csv
import errno
import math
import os
import struct
import tracemalloc
from bisect import bisect_right
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.errors import UserError
from longtake.core.video import decode
from longtake.core.video.decode import Clock, TimedFrame, VideoError, fingerprint, probe, resample
from longtake.core.video.placement import cover, place
from longtake.core.video.read import iter_frames, read_frames
from longtake.core.video.write import write_video

LOSSLESS = {"codec": "ffv1"}


def encode(
    path, pictures, *, codec="libx264", rate=10, pix_fmt="yuv420p", stamps=None, aspect=None
):
    """Write `pictures` [F, H, W, 3]; `stamps` are milliseconds where the rate varies."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1000 if stamps else rate)
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], pix_fmt
        if codec == "libx264":
            stream.options = {"crf": "0", "g": "7"}  # lossless
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt)
            frame.pts = stamps[index] if stamps else index
            frame.time_base = Fraction(1, 1000) if stamps else Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbered(count, height=32, width=48):
    """Give `count` flat frames (at most 60) whose grey level is 4 k + 8; coding moves it by 1."""
    return [np.full((height, width, 3), 4 * k + 8, np.uint8) for k in range(count)]


def numbers(frames):
    return [round((float(frame.mean()) - 8) / 4) for frame in frames]


def colours(height, width):
    """Give a picture with another colour in each quarter, and those colours in reading order."""
    corners = np.array([[[200, 30, 30], [30, 180, 40]], [[40, 50, 210], [230, 230, 40]]], np.uint8)
    picture = np.repeat(np.repeat(corners, height // 2, 0), width // 2, 1)
    return np.ascontiguousarray(picture), corners.astype(float)


def quarters(picture):
    rows, columns = picture.shape[0] // 4, picture.shape[1] // 4
    return picture[rows :: 2 * rows][:2][:, columns :: 2 * columns][:, :2].astype(float)


@pytest.mark.parametrize("fps", [4, 7.5, 10, 16, 24, 30])
def test_each_output_is_the_frame_on_screen_at_its_time(tmp_path, fps):
    path = encode(tmp_path / "v.mp4", numbered(35))
    clip = read_frames(path, fps=fps)
    exact = [math.floor(Fraction(k) / Fraction(fps) * 10) for k in range(math.ceil(3.5 * fps))]
    assert numbers(clip.frames) == exact
    assert clip.warning == "" and not clip.truncated


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv"])
def test_variable_frame_rate_goes_by_timestamps(tmp_path, name):
    stamps = [0, 40, 200, 210, 500, 1000, 1033, 1067]
    path = encode(tmp_path / name, numbered(8), stamps=stamps)
    expected = [bisect_right(stamps, k * 50) - 1 for k in range(21)]
    assert numbers(read_frames(path, fps=20, count=21).frames) == expected


def test_timestamps_that_milliseconds_round_are_not_missed(tmp_path):
    stamps = [round(k * 1000 / 30) for k in range(30)]  # 33, 67, 100 ms ...
    path = encode(tmp_path / "v.mkv", numbered(30), stamps=stamps)
    assert numbers(read_frames(path, fps=30).frames)[:30] == list(range(30))


def test_times_count_from_the_first_frame(tmp_path):
    path = encode(tmp_path / "v.mkv", numbered(10), stamps=[5000 + 100 * k for k in range(10)])
    assert numbers(read_frames(path, fps=5).frames) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts", "v.avi"])
@pytest.mark.parametrize("start", [0.0, 2.05, 6.3, 11.4])
def test_a_start_reads_the_same_frames_as_reading_from_the_beginning(tmp_path, name, start):
    path = encode(tmp_path / name, numbered(60), rate=5)
    clip = read_frames(path, fps=5, start=start, count=3)
    assert numbers(clip.frames) == [int(start * 5 + 1e-6) + k for k in range(3)]


@settings(max_examples=80, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 40), max_size=30),
    fps=st.sampled_from([1, 8, 16, 23.976, 24, 60]),
    start=st.sampled_from([0.0, 0.1, 0.77]),
)
def test_resampling_against_its_definition(gaps, fps, start):
    times = [0.0, *np.cumsum(gaps) / 100]
    shown = [TimedFrame(t, t + 0.02, index) for index, t in enumerate(times)]
    got = [frame for frame, _ in resample(shown, fps, start, 1e-6)]
    count = max(0, math.ceil((times[-1] + 0.02 - start - 1e-6) * fps))
    moments = [start + k / fps + 1e-6 for k in range(count)]
    assert got == [bisect_right(times, moment) - 1 for moment in moments]


def test_a_broken_clock_keeps_every_frame():
    stamps = [None, None, 50, 51, 3, 4, 90000, 90001]
    clock = Clock(0.1)
    frames = [SimpleNamespace(pts=p, time_base=Fraction(1, 10), duration=0) for p in stamps]
    assert [round(clock.read(frame).time, 6) for frame in frames] == [k / 10 for k in range(8)]


MATRICES = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
MATRICES += [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


@pytest.mark.parametrize(("matrix", "degrees"), zip(MATRICES, [0, 90, 180, 270] * 2, strict=True))
def test_display_matrices_turn_and_mirror(tmp_path, matrix, degrees):
    picture, corners = colours(32, 64)
    path = encode(tmp_path / "v.mp4", [picture] * 3)
    data = bytearray(path.read_bytes())
    a, b, c, d = matrix
    at = data.index(b"tkhd") + 44
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)

    expected = np.zeros_like(corners)
    for y, x in np.ndindex(2, 2):  # ISO 14496-12: (x, y) is shown at (a x + c y, b x + d y)
        across, down = 2 * x - 1, 2 * y - 1
        expected[(b * across + d * down + 1) // 2, (a * across + c * down + 1) // 2] = corners[y, x]
    info, clip = probe(path), read_frames(path, fps=10)
    assert (info.width, info.height) == ((64, 32) if b == 0 else (32, 64))
    assert clip.frames.shape[1:3] == (info.height, info.width)
    assert np.abs(quarters(clip.frames[0]) - expected).max() < 12
    if a * d - b * c > 0:
        assert info.rotation == degrees
        with av.open(str(path)) as container:  # FFmpeg's own reading, counterclockwise
            assert -next(container.decode(video=0)).rotation % 360 == degrees


def test_pixels_that_are_not_square_become_so(tmp_path):
    wide = encode(tmp_path / "w.mkv", numbered(2, 32, 48), aspect=Fraction(2))
    tall = encode(tmp_path / "t.mkv", numbered(2, 32, 48), aspect=Fraction(1, 2))
    odd = encode(tmp_path / "o.mkv", numbered(2, 32, 48), aspect=Fraction(96, 97))
    assert [(i.width, i.height) for i in map(probe, (wide, tall, odd))] == [
        (96, 32),
        (48, 64),
        (48, 32),
    ]
    assert read_frames(wide, fps=10).frames.shape[1:3] == (32, 96)


@pytest.mark.parametrize("pix_fmt", ["gray", "yuv420p10le", "yuv444p", "bgra", "gbrp16le"])
def test_any_pixel_format_and_odd_sizes(tmp_path, pix_fmt):
    path = encode(tmp_path / "v.mkv", numbered(4, 33, 47), pix_fmt=pix_fmt, **LOSSLESS)
    clip = read_frames(path, fps=10)
    assert clip.frames.shape == (4, 33, 47, 3)
    assert numbers(clip.frames) == [0, 1, 2, 3]


def test_one_frame_is_a_video(tmp_path):
    path = encode(tmp_path / "v.mp4", numbered(1))
    assert len(read_frames(path, fps=10).frames) == 1
    assert len(read_frames(path, fps=1).frames) == 1


def test_resizing_averages_areas(tmp_path):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 240
    path = encode(tmp_path / "v.mkv", [stripes], pix_fmt="bgra", **LOSSLESS)
    small = read_frames(path, fps=10, size=(16, 16)).frames
    assert small.shape == (1, 16, 16, 3) and np.abs(small.astype(int) - 120).max() <= 4


@pytest.mark.parametrize("size", [None, (48, 80), (30, 50)])
def test_colours_are_not_darkened(tmp_path, size):
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(20, 230, (12, 20, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    write_video(tmp_path / "v.mp4", [picture], 10, crf=0)
    read = read_frames(tmp_path / "v.mp4", fps=10, size=size).frames
    assert np.abs(read.mean((0, 1, 2)) - picture.mean((0, 1))).max() < 0.8


def test_a_placement_is_where_the_picture_lands(tmp_path):
    picture, _ = colours(64, 128)
    path = encode(tmp_path / "v.mkv", [picture], pix_fmt="bgra", **LOSSLESS)
    at = place(128, 64, 32 * 32, (16, 16))
    clip = read_frames(path, fps=10, size=at)
    assert clip.frames.shape[1:3] == (at.height, at.width) and clip.placement == at
    cropped = read_frames(path, fps=10, size=cover(128, 64, (64, 64))).frames[0]
    assert np.array_equal(cropped, picture[:, 32:96])
    with pytest.raises(VideoError, match="128x64"):
        read_frames(path, fps=10, size=cover(100, 64, (32, 32)))


def test_chunks_are_the_whole_in_bounded_memory(tmp_path):
    path = encode(tmp_path / "v.mp4", numbered(60, 96, 96))
    whole = read_frames(path, fps=60).frames
    tracemalloc.start()
    chunks = iter_frames(path, fps=60, chunk=7)
    done = 0
    for chunk in chunks:
        assert len(chunk) == min(7, len(whole) - done)
        assert np.array_equal(chunk, whole[done : done + len(chunk)])
        done += len(chunk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done == len(whole) == 360 and peak < 5 * 7 * 96 * 96 * 3 < whole.nbytes / 10


@settings(max_examples=8, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), count=st.integers(1, 4))
def test_what_is_written_is_read(tmp_path_factory, height, width, count):
    path = tmp_path_factory.mktemp("w") / "v.mp4"
    write_video(path, np.stack(numbered(count, height, width)), 12.5, crf=1)
    clip = read_frames(path, fps=12.5)
    assert clip.frames.shape == (count, height, width, 3)
    assert numbers(clip.frames) == list(range(count))
    assert clip.info.fps == 12.5 and [f.name for f in path.parent.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize("size", [(32, 64), (34, 66), (480, 640)])
def test_written_colours_come_back(tmp_path, size):
    picture, corners = colours(*size)
    write_video(tmp_path / "v.mp4", [picture] * 3, 24)
    assert np.abs(quarters(read_frames(tmp_path / "v.mp4", fps=24).frames[2]) - corners).max() < 5


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"before")

    def broken():
        yield from numbered(60) * 2  # enough for the encoder to have written some
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_video(path, broken(), 10)
    for bad in (
        [],
        [np.zeros((8, 8), np.uint8)],
        [np.zeros((8, 8, 3))],
        [*numbered(1), *numbered(1, 8)],
    ):
        with pytest.raises(UserError):
            write_video(path, bad, 10)
    with pytest.raises(UserError):
        write_video(path, numbered(1), 0)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_a_fingerprint_follows_content_not_name(tmp_path):
    big = bytearray(np.random.default_rng(0).bytes(3 << 20))
    (tmp_path / "a").write_bytes(big)
    (tmp_path / "b").write_bytes(big)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    for change in (0, len(big) - 1):
        other = bytearray(big)
        other[change] ^= 1
        (tmp_path / "b").write_bytes(other)
        assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
    (tmp_path / "b").write_bytes(big + b"x")
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


@pytest.mark.video
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_real_clips_are_what_their_manifest_says(video_dir, every):
    with (video_dir / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    assert rows
    for row in rows[::every]:
        path = video_dir / row["split"] / row["file"]
        info = probe(path)
        assert (info.width, info.height) == (int(row["width"]), int(row["height"]))
        clip = read_frames(path, fps=8, size=(24, 40))
        assert len(clip.frames) == math.ceil(int(row["frames"]) / 2) and clip.warning == ""


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts", "v.avi"])
def test_a_late_start_is_sought_not_decoded(tmp_path, name):
    path = encode(tmp_path / name, numbered(60), rate=5)
    with decode.open_video(path) as source:
        times = [shown.time for shown in source.frames(start=10.0)]
    assert 5 < times[0] <= 10.0 and times[-1] == pytest.approx(11.8, abs=1e-3)


def test_a_seek_that_lands_too_late_starts_over(tmp_path, monkeypatch):
    path = encode(tmp_path / "v.mp4", numbered(60), rate=5)
    monkeypatch.setattr(decode, "SEEK_MARGIN", -2.0)
    assert numbers(read_frames(path, fps=5, start=6.0, count=4).frames) == [30, 31, 32, 33]


def test_a_disk_that_refuses_is_one_line(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    frames = np.zeros((3, 16, 16, 3), np.uint8)
    write_video(tmp_path / "a.mp4", frames, 8)
    before = (tmp_path / "a.mp4").read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write .*a.mp4: No space left"):
        write_video(tmp_path / "a.mp4", frames[:1], 8)
    assert (tmp_path / "a.mp4").read_bytes() == before and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(UserError, match="cannot write"):
        write_video(tmp_path / "a.mp4" / "b.mp4", frames, 8)
