"""Reading video: which source frame each output is, upright and square, in any pixel format."""

import csv
import errno
import json
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
from longtake.core.video.aperture import Aperture, read_aperture
from longtake.core.video.decode import (
    Clock,
    Orientation,
    TimedFrame,
    VideoError,
    fingerprint,
    probe,
    resample,
)
from longtake.core.video.placement import cover, place
from longtake.core.video.read import iter_frames, read_frames
from longtake.core.video.write import write_video

from .odd_files import (
    MADE,
    ODD,
    broken_inside,
    camera,
    shared_case,
    video,
    with_clap,
    with_pixel_crop,
)

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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


TIMES = json.loads((ODD / "ffmpeg_times.json").read_text())["files"]


def odd_file(folder, name):
    """The file of that name: kept here, made by PyAV, or one of the inputs that may be absent."""
    if (ODD / name).exists():
        return ODD / name
    if name in MADE:
        return MADE[name](folder / name)
    return shared_case(f"video/{name}")


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMES)
def test_frame_times_and_lengths_are_those_of_ffmpeg(tmp_path, name):
    with decode.open_video(odd_file(tmp_path, name)) as video:
        shown = list(video.frames())
    times, end = TIMES[name]["times"], TIMES[name]["end"]
    assert len(shown) == len(times)
    if name == "copied-h264.avi":  # whose last two frames this ffmpeg moves half a frame ahead
        times, end, shown = times[:-2], times[-2] + 0.0625, shown[:-2]
    assert [frame.time for frame in shown] == pytest.approx(times, abs=1e-3)
    assert shown[-1].end == pytest.approx(end, abs=1e-3)


@pytest.mark.parametrize("name", ["copied-h264.avi", "h264.avi", "mpeg4.avi"])
@pytest.mark.parametrize("start", [0.0, 2.5])
def test_an_avi_with_b_frames_has_its_length_and_its_order(tmp_path, name, start):
    path = odd_file(tmp_path, name)
    assert (probe(path).seconds, probe(path).fps) == (3.0, 8.0)
    frames = read_frames(path, fps=8, start=start).frames
    assert numbers(frames) == list(range(int(8 * start), 24))


def test_packed_b_frames_come_in_their_order():
    frames = read_frames(ODD / "packed-xvid.avi", fps=8).frames
    levels = (frames.mean(axis=(1, 2, 3)) - 8) / 4  # this writer was coarse, and lost the last two
    assert levels == pytest.approx(np.arange(22), abs=0.8) and (np.diff(levels) > 0.2).all()


def test_side_data_without_a_name_concerns_nobody(tmp_path):
    for path in (camera(tmp_path / "a.avi"), tmp_path / "shared"):
        path = path if path.exists() else odd_file(tmp_path, "exif/camera.avi")
        with av.open(str(path)) as container:
            kinds = [data.type.name for data in next(container.decode(video=0)).side_data]
        assert any(kind.startswith("UNNAMED_") for kind in kinds)
        assert probe(path).rotation == 0 and len(read_frames(path, fps=8).frames) == 24


@pytest.mark.parametrize(
    ("make", "name", "size"),
    [(with_clap, "a.mp4", (24, 40)), (with_pixel_crop, "a.mkv", (24, 48))],
)
def test_the_crop_of_the_container_is_applied(tmp_path, make, name, size):
    path = make(tmp_path / name)
    info, clip = probe(path), read_frames(path, fps=8)
    assert (info.height, info.width) == size and clip.frames.shape[1:3] == size
    assert numbers(clip.frames) == list(range(13)) and clip.warning == ""


def test_the_crop_takes_the_pixels_that_it_names(tmp_path):
    """Its left, right, top and bottom; a crop of everything is none."""
    picture = np.full((32, 48, 3), 20, np.uint8)
    picture[4:20, 16:40] = 200
    path = encode(tmp_path / "v.mkv", [picture] * 3, pix_fmt="yuv444p", **LOSSLESS)
    with decode.open_video(path) as video:
        video.aperture = Aperture(left=16, right=8, top=4, bottom=12)
        frames = [shown.frame.to_ndarray(format="rgb24") for shown in video.frames()]
    assert all(f.shape == (16, 24, 3) and f.min() > 190 for f in frames) and len(frames) == 3
    with decode.open_video(path) as video:
        video.aperture = Aperture(top=32)
        assert next(video.frames()).frame.height == 32


def test_the_shared_clean_aperture(tmp_path):
    path = odd_file(tmp_path, "clap/clap.mp4")
    assert (probe(path).width, probe(path).height) == (160, 96)
    frames = read_frames(path, fps=8).frames
    assert frames.shape[1:3] == (96, 160) and frames[:, [0, -1]].mean() > 30  # no black rows


@pytest.mark.parametrize("seed", range(6))
def test_damaged_headers_crop_nothing_or_something_that_fits(tmp_path, seed):
    rng = np.random.default_rng(seed)
    for path in (with_clap(tmp_path / "a.mp4"), with_pixel_crop(tmp_path / "a.mkv")):
        data = bytearray(path.read_bytes())
        for at in rng.integers(0, len(data), 40):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        assert isinstance(read_aperture(path, 1), Aperture)


@pytest.mark.parametrize(
    ("height", "width", "colorspace", "standard"),
    [(720, 1280, None, 709), (576, 720, None, 601), (720, 1280, 5, 601), (576, 720, 1, 709)],
)
def test_untagged_high_definition_is_bt_709(tmp_path, height, width, colorspace, standard):
    frame = av.VideoFrame(width, height, "yuv444p")
    for plane, value in zip(frame.planes, (81, 90, 240), strict=True):  # red in BT.601
        plane.update(bytes([value]) * plane.buffer_size)
    frame.colorspace = colorspace or 2
    place_at = cover(width, height, (height, width))
    red = decode.Renderer(place_at, Orientation())(frame)[0, 0].astype(int)
    luma, blue, redness = (81 - 16) / 219, (90 - 128) / 224, (240 - 128) / 224
    kr, kb = (0.2126, 0.0722) if standard == 709 else (0.299, 0.114)
    r, b = luma + 2 * (1 - kr) * redness, luma + 2 * (1 - kb) * blue
    expected = np.clip([r, (luma - kr * r - kb * b) / (1 - kr - kb), b], 0, 1) * 255
    assert np.abs(red - expected).max() <= 2


def test_memory_that_runs_short_ends_a_video_and_does_not_shorten_it(tmp_path, monkeypatch):
    path = encode(tmp_path / "v.mp4", numbered(20))
    for error in (av.error.MemoryError(12, "Cannot allocate memory"), MemoryError()):
        monkeypatch.setattr(decode, "BestEffort", lambda error=error: failing_at(9, error))
        with pytest.raises(VideoError, match=r"v\.mp4: memory ran short .* run again"):
            read_frames(path, fps=10)


def failing_at(count, error):
    calls = iter(range(count))

    def stamp(pts, dts):
        if next(calls, None) is None:
            raise error
        return pts

    return stamp


def test_a_packet_is_not_called_broken_where_memory_is_short(tmp_path, monkeypatch):
    path = broken_inside(tmp_path / "v.mkv")
    assert read_frames(path, fps=8).warning.startswith("parts could not be decoded")
    monkeypatch.setattr(decode, "HEADROOM", 1 << 62)
    with pytest.raises(VideoError, match="memory ran short"):
        read_frames(path, fps=8)


def test_damage_that_does_not_come_again_is_not_the_files(tmp_path, monkeypatch):
    path = encode(tmp_path / "v.mp4", numbered(20))
    invalid = av.error.InvalidDataError(1094995529, "Invalid data")
    guesses = iter([failing_at(30, invalid), failing_at(9, invalid)])
    real = decode.BestEffort
    monkeypatch.setattr(decode, "BestEffort", lambda: next(guesses, real()))
    with pytest.raises(VideoError, match=r"v\.mp4: read twice, \d+ and 20 frames came"):
        read_frames(path, fps=10)


@pytest.mark.parametrize("sound_first", [0.0, 1.0])
def test_where_players_begin(tmp_path, sound_first):
    stamps = [round(1000 * sound_first) + 125 * k for k in range(16)]
    path = video(tmp_path / "v.mkv", 16, codec="ffv1", stamps=stamps, sound=3.0)
    assert decode.starts_late(path) == pytest.approx(sound_first, abs=0.01)
    alone = video(tmp_path / "alone.mkv", 16, codec="ffv1", stamps=[s + 5000 for s in stamps])
    assert decode.starts_late(alone) == 0
