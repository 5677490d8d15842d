"""Videos of any kind whose frames can be told apart: frame k is grey of level 4 k + 8."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

LEVELS = 60  # frames further on begin again


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
