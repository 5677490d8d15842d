"""Videos of any kind whose frames can be told apart: frame k is grey of level 4 k + 8."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

# Odd files that other programs wrote, and when ffmpeg shows the frames of these and of `MADE`.
ODD = Path(__file__).with_name("odd")

ROOT = Path(__file__).parents[2]
LEVELS = 60  # frames further on begin again


def shared_case(name: str) -> Path:
    """An input of the shared cases, in `$LONGTAKE_CASES` or beside the checkout; else skip."""
    place = Path(os.environ.get("LONGTAKE_CASES", ROOT.parent / "shared" / "cases"))
    if not (place / name).exists():
        pytest.skip(f"no {name} in {place}; set LONGTAKE_CASES")
    return place / name


def grey(number: int, size: tuple[int, int]) -> np.ndarray:
    """Frame `number` uint8 [H, W, 3]."""
    return np.full((*size, 3), 4 * (number % LEVELS) + 8, np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are: [3, F, H, W]; coding may move a level by 1."""
    return [round((float(mean) - 8) / 4) for mean in frames.mean(axis=(0, 2, 3), dtype=float)]


def video(
    path: Path,
    count: int = 13,
    *,
    size: tuple[int, int] = (32, 48),
    rate: int = 8,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    stamps: Sequence[int] | None = None,
    aspect: Fraction | None = None,
    sound: float = 0.0,
    frames: bool = True,
) -> Path:
    """Write `count` numbered frames; `stamps` are milliseconds where they are not 1 / `rate`."""
    with av.open(str(path), "w") as container:
        base = Fraction(1, 1000) if stamps else Fraction(1, rate)
        if frames:
            stream = container.add_stream(codec, rate=1000 if stamps else rate)
            stream.height, stream.width, stream.pix_fmt = *size, pix_fmt
            stream.options = options or ({"crf": "0"} if codec == "libx264" else {})
            if aspect:
                stream.codec_context.sample_aspect_ratio = aspect
        voice = container.add_stream("aac", rate=8000, layout="mono") if sound else None
        for k in range(count if frames else 0):
            frame = av.VideoFrame.from_ndarray(grey(k, size), "rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = stamps[k] if stamps else k, base
            container.mux(stream.encode(frame))
        container.start_encoding()  # writes the header where no frame did
        container.mux(stream.encode() if frames else [])
        _speak(container, voice, sound)
    return path


def _speak(container: av.container.OutputContainer, voice: object, seconds: float) -> None:
    if voice is None:
        return
    for begin in range(0, int(seconds * 8000), 1024):
        block = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        block.sample_rate, block.pts = 8000, begin
        container.mux(voice.encode(block))
    container.mux(voice.encode())


def turned(path: Path) -> Path:
    """An mp4 that asks to be shown a quarter turn clockwise."""
    data = bytearray(video(path).read_bytes())
    at = data.index(b"tkhd") + 44
    struct.pack_into(">9i", data, at, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def gif(path: Path, milliseconds: Sequence[int]) -> Path:
    """An animation with transparent corners whose frames last so long."""
    pictures = [Image.fromarray(grey(k, (32, 48))) for k in range(len(milliseconds))]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=list(milliseconds), loop=0
    )
    return path


def image(path: Path, kind: str) -> Path:
    """A picture of that kind under any name."""
    Image.fromarray(grey(5, (32, 48))).save(path, kind)
    return path


def cut(path: Path, share: float) -> Path:
    """The first `share` of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def broken_inside(path: Path) -> Path:
    """A video of 13 rough frames of which 5, 6 and 7 cannot be decoded."""
    rough = np.random.default_rng(0).integers(-6, 7, (32, 48, 3))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8, options={"g": "4"})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for k in range(13):
            picture = (grey(k, (32, 48)) + rough).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0)][5:8]
    data = path.read_bytes()
    for packet in packets:
        data = data.replace(packet, b"\xff" * len(packet))
    path.write_bytes(data)
    return path


def camera(path: Path, count: int = 24) -> Path:
    """An AVI of a camera: JPEG pictures with EXIF in each, which PyAV has no name for."""
    exif = Image.Exif()
    exif[271] = "Maker"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuvj420p"
        container.start_encoding()
        for k in range(count):
            data = io.BytesIO()
            Image.fromarray(grey(k, (32, 48))).save(data, "JPEG", exif=exif, quality=95)
            packet = av.Packet(data.getvalue())
            packet.stream, packet.pts, packet.dts = stream, k, k
            packet.time_base, packet.duration, packet.is_keyframe = Fraction(1, 8), 1, True
            container.mux(packet)
    return path


def with_clap(path: Path, shown: tuple[int, int] = (24, 40)) -> Path:
    """An mp4 of 32 x 48 pixels of which a clean aperture shows so many in the middle."""
    data = bytearray(video(path).read_bytes())
    height, width = shown
    clap = struct.pack(">I4s8I", 40, b"clap", width, 1, height, 1, 0, 1, 0, 1)
    at = data.index(b"avcC") - 4
    data[at:at] = clap
    for kind in (b"avc1", b"stsd", b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        begin = (
            data.index(kind) - 4
            if kind != b"avc1"
            else data.index(b"avc1", data.index(b"stsd")) - 4
        )
        (size,) = struct.unpack_from(">I", data, begin)
        struct.pack_into(">I", data, begin, size + len(clap))
    path.write_bytes(data)  # the frames lie before the headers: their places stay
    return path


def with_pixel_crop(path: Path) -> Path:
    """A Matroska file of 32 x 48 pixels, to be shown without its 8 lowest rows."""
    data = bytearray(video(path, codec="ffv1").read_bytes())
    at = data.index(b"\x54\xb2\x81")  # DisplayUnit, of one byte
    data[at : at + 4] = b"\x54\xaa\x81\x08"
    path.write_bytes(data)
    return path


def _b_frames(path: Path) -> Path:
    return video(path, 24, options={"bf": "2", "crf": "4", "g": "12"})


def _uneven(path: Path) -> Path:
    return video(path, 5, codec="ffv1", stamps=[0, 130, 1000, 1500, 1540])


FINE = {"bf": "2", "g": "12", "qmin": "1", "qmax": "1"}

# Files of which ffmpeg's times are kept, and how PyAV makes them.
MADE: dict[str, Callable[[Path], Path]] = {
    "h264.avi": _b_frames,
    "mpeg4.avi": lambda path: video(path, 24, codec="mpeg4", options=FINE),
    "camera-exif.avi": camera,
    "h264.mp4": _b_frames,
    "h264.mkv": _b_frames,
    "h264.ts": _b_frames,
    "h264.flv": _b_frames,
    "h264.h264": _b_frames,
    "mpeg2.vob": lambda path: video(path, 24, rate=25, codec="mpeg2video", options=FINE),
    "uneven.mkv": _uneven,
}
