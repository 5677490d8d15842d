"""Video files that cannot be used: one clear line with the file's name and the reason."""

import os
import wave

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.errors import UserError
from longtake.core.video.decode import VideoError, fingerprint, probe
from longtake.core.video.read import iter_frames, read_frames


def noise(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 255, (count, 48, 64, 3), np.uint8))


def encode(path, pictures, options=None, codec="libx264", sound=0.0):
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"g": "5"}
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono") if sound else None
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for begin in range(0, int(sound * 8000), 800) if audio else ():
            block = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            block.sample_rate, block.pts = 8000, begin
            container.mux(audio.encode(block))
    return path


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def write_wave(path):
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(8000))
    return path


def refused(path, reason):
    for use in (probe, lambda p: read_frames(p, fps=8), lambda p: list(iter_frames(p, fps=8))):
        with pytest.raises(VideoError, match=reason) as caught:
            use(path)
        text = str(caught.value)
        assert text.startswith(path.name) and "\n" not in text and "Errno" not in text
        assert str(path.parent) not in text and caught.value.exit_code == 2


def test_missing_empty_and_folder(tmp_path):
    empty = tmp_path / "empty.mp4"
    empty.touch()
    refused(tmp_path / "none.mp4", "no such file")
    refused(empty, "is empty")
    refused(tmp_path, "is a folder")
    with pytest.raises(VideoError, match="is empty"):
        fingerprint(empty)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    refused(tmp_path / "pipe.mp4", "not a file")


def test_unreadable(tmp_path, monkeypatch):
    path = encode(tmp_path / "v.mp4", noise(2))

    def refuse(self, *_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    refused(path, r"cannot be read \(Permission denied\)")


@pytest.mark.parametrize("content", [b"This is not a video.\n" * 50, bytes(5000), b"\x00\xff\x07"])
def test_not_a_video(tmp_path, content):
    path = tmp_path / "notes.mp4"
    path.write_bytes(content)
    refused(path, "not a video that FFmpeg can read|not one frame|no video stream")


def test_a_caption_is_not_drawn_as_a_video(tmp_path):
    path = tmp_path / "caption.txt"
    path.write_text("A cat walks along a wall.\n" * 20)
    refused(path, "is a text file")


def test_sound_alone(tmp_path):
    refused(write_wave(tmp_path / "sound.wav"), "no video stream")


def test_cover_art_is_not_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        art = container.add_stream("mjpeg", rate=1)
        art.width, art.height, art.pix_fmt = 64, 48, "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.VideoFrame.from_ndarray(noise(1)[0], "rgb24")
        container.mux(art.encode(frame) + art.encode())
        block = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        block.sample_rate = 8000
        container.mux(sound.encode(block) + sound.encode())
    refused(path, "no video stream")


def test_an_mp4_without_its_index_is_not_readable(tmp_path):
    refused(cut(encode(tmp_path / "v.mp4", noise(100)), 0.5), "not a video that FFmpeg can read")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("v.mkv", {}), ("v.mp4", {"movflags": "faststart"})])
def test_a_truncated_video_gives_what_there_is_and_says_so(tmp_path, name, options):
    path = encode(tmp_path / name, noise(100), options)
    whole = read_frames(path, fps=10)
    assert len(whole.frames) == 100 and not whole.truncated and whole.warning == ""
    cut(path, 0.3)
    assert probe(path).seconds == pytest.approx(10, abs=0.2)
    clip = read_frames(path, fps=10)
    assert 20 <= len(clip.frames) <= 32 and clip.truncated
    assert clip.warning.startswith("truncated: ") and "of 10.0 s" in clip.warning
    assert np.array_equal(clip.frames[:20], whole.frames[:20])
    early = read_frames(path, fps=10, count=10)
    assert len(early.frames) == 10 and not early.truncated
    with pytest.raises(VideoError, match=r"at least 50 needed; truncated: \d"):
        read_frames(path, fps=10, minimum=50)
    with pytest.raises(VideoError, match="gives 0 frames"):
        read_frames(path, fps=10, start=8.0)
    stream = iter_frames(path, fps=10)
    assert sum(map(len, stream)) == len(clip.frames) and stream.truncated


def test_a_broken_packet_does_not_end_a_video(tmp_path):
    path = encode(tmp_path / "v.mkv", noise(40), codec="ffv1")
    with av.open(str(path)) as container:
        broken = [bytes(packet) for packet in container.demux(video=0)][12:15]
    data = path.read_bytes()
    for packet in broken:
        data = data.replace(packet, b"\xff" * len(packet))
    path.write_bytes(data)
    clip = read_frames(path, fps=10)
    assert len(clip.frames) == 40 and not clip.truncated
    assert clip.warning.startswith("parts could not be decoded")


def test_a_truncated_video_with_sound_is_noticed(tmp_path):
    clip = read_frames(cut(encode(tmp_path / "v.mkv", noise(100), sound=10.0), 0.3), fps=10)
    assert clip.truncated


def test_longer_sound_is_not_missing_video(tmp_path):
    path = encode(tmp_path / "v.mkv", noise(10), sound=4.0)
    clip = read_frames(path, fps=10)
    assert probe(path).seconds == pytest.approx(1, abs=0.1)
    assert len(clip.frames) == 10 and not clip.truncated


def test_a_stream_that_declares_no_length_is_counted(tmp_path):
    path = encode(tmp_path / "v.h264", noise(30))
    info = probe(path)
    assert len(read_frames(path, fps=info.fps).frames) == 30
    assert info.seconds == pytest.approx(30 / info.fps, rel=0.1)


def test_too_short_or_too_late(tmp_path):
    path = encode(tmp_path / "v.mp4", noise(10))
    with pytest.raises(VideoError, match=r"gives 8 frames at 8 fps .* the video has 1\.0 s"):
        read_frames(path, fps=8, minimum=9)
    with pytest.raises(VideoError, match="gives 0 frames at 8 fps from 30 s"):
        read_frames(path, fps=8, start=30)
    assert read_frames(path, fps=8, start=30, minimum=0).frames.shape == (0, 48, 64, 3)
    assert read_frames(path, fps=8, count=0).frames.shape == (0, 48, 64, 3)


def test_names_that_look_like_protocols_or_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("take:1.mp4", "größe 100%03d.mp4", "-i.mp4"):
        path = encode(tmp_path / "v.mp4", noise(3)).rename(tmp_path / name)
        assert len(read_frames(path.relative_to(tmp_path), fps=10).frames) == 3


@pytest.mark.parametrize(
    "bad",
    [{"fps": 0}, {"fps": float("nan")}, {"fps": 8, "start": -1}, {"fps": 8, "count": -1}],
)
def test_impossible_requests(tmp_path, bad):
    path = encode(tmp_path / "v.mp4", noise(2))
    with pytest.raises(UserError):
        read_frames(path, **bad)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts"])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_damaged_bytes_never_end_in_another_error(tmp_path_factory, name, seed):
    folder = tmp_path_factory.mktemp("fuzz")
    data = bytearray(encode(folder / name, noise(12)).read_bytes())
    rng = np.random.default_rng(seed)
    reach = len(data) if seed % 2 else 1500  # the header is where it hurts
    for at in rng.integers(0, reach, 12):
        data[at] = rng.integers(256)
    (folder / name).write_bytes(data)
    try:
        clip = read_frames(folder / name, fps=10, size=(24, 32), count=500)
    except VideoError as error:
        assert str(error).startswith(name)
    else:
        assert clip.frames.shape[1:] == (24, 32, 3) and len(clip.frames) > 0
