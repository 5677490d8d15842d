"""What a video file is, told without reading all of it."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from attrs import field, frozen

from .decode import Source, VideoError, check_file, opened
from .picture import Turn, square_size

EDGE = 1 << 20  # bytes at either end of a file that go into its fingerprint


@frozen(kw_only=True)
class VideoInfo:
    """What a video is before anything is done to it."""

    width: int  # of the upright picture in square pixels
    height: int
    seconds: float  # that the file declares for its video stream; counted where it declares none
    fps: float  # on average
    rotation: int  # degrees clockwise that players turn the picture by: 0, 90, 180, 270
    turn: Turn = field(repr=False)  # the same, with mirroring


def probe(path: Path) -> VideoInfo:
    """Give size, length and frame rate of a video; decodes one frame.

    Raises:
        VideoError: the file is missing, unreadable, empty, not a video, has no video stream (only
            sound, or cover art), or not one frame can be decoded.
    """
    with opened(path) as source:
        first = next(source.frames(), None)
        if first is None:
            raise VideoError(path, "not one frame can be decoded")
        turn = Turn.of(first.frame)
        height, width = square_size(first.frame, source.stream.sample_aspect_ratio)
        seconds = _declared(source)
        timed = first.frame.pts is not None  # else the rate is FFmpeg's default of 25
        return VideoInfo(
            width=height if turn.transpose else width,
            height=width if turn.transpose else height,
            seconds=_counted(path) if seconds is None else seconds,
            fps=1 / (source.step if timed else first.end),
            rotation=turn.degrees,
            turn=turn,
        )


def _declared(source: Source) -> float | None:
    stream, container = source.stream, source.container
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    alone = len(container.streams) == 1  # else the sound may be what lasts so long
    return float(container.duration / 1e6) if container.duration and alone else None


def _counted(path: Path) -> float:
    """Give the seconds that the packets of a file last or span, without decoding them."""
    with opened(path) as source:
        length, first, last = 0.0, float("inf"), 0.0
        for packet in source.container.demux(source.stream):
            known = float(packet.duration * packet.time_base) if packet.duration else source.step
            length += known if packet.size else 0.0
            if packet.pts is not None:
                stamp = float(packet.pts * packet.time_base)
                first, last = min(first, stamp), max(last, stamp + known)
        return last - first if last > first else length


def fingerprint(path: Path) -> str:
    """Give a cheap identity of a file's content: 64 hex digits.

    It is the sha256 over the size (8 bytes, little endian), the first and the last MiB: equal for
    copies and renames, different where a video was cut or encoded anew. Bytes changed in the middle
    of a file of the same size are not seen: delete its clip from the store to have it cached anew.
    More samples would see more, but stores hold this value: another hash would cache all again.

    Raises:
        VideoError: the file is missing, not a file, unreadable or empty.
    """
    check_file(path)
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest = hashlib.sha256(size.to_bytes(8, "little"))
        for begin in (0, max(size - EDGE, 0)):
            file.seek(begin)
            digest.update(file.read(EDGE))
    return digest.hexdigest()
