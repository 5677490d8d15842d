"""Opening a video with one clear error, and decoding it past damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import av
from attrs import define

from ..errors import UserError
from .names import printable
from .timing import Clock, Shown

SEEK_BEYOND = 4.0  # seconds; below it decoding from the start is as fast as seeking
SEEK_MARGIN = 1.0  # seconds; containers seek by decoding time, which runs ahead of the frames shown
MAX_TOLERANCE = 1e-3  # seconds; what containers that count in milliseconds round away


class VideoError(UserError):
    """A video file that cannot be used: the message has the file's name and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{printable(path.name)}: {reason}")


def check_file(path: Path) -> None:
    """Make sure that `path` is a readable file with something in it.

    Raises:
        VideoError: it is missing, not a regular file, unreadable or empty.
    """
    try:
        if not path.exists():
            raise VideoError(path, "no such file")
        if not path.is_file():
            raise VideoError(path, "is a folder, not a video" if path.is_dir() else "not a file")
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise VideoError(path, f"cannot be read ({error.strerror})") from error
    if empty:
        raise VideoError(path, "is empty (0 bytes)")


@contextmanager
def opened(path: Path) -> Iterator[Source]:
    """Give the first real video stream of a file, open for decoding; cover art is not video.

    Raises:
        VideoError: `check_file` fails, FFmpeg cannot read the file, or it has no video stream that
            this FFmpeg decodes.
    """
    check_file(path)
    try:
        # An absolute path, so that "take:1.mp4" is not taken for a protocol.
        container = av.open(str(path.resolve()), metadata_errors="replace")
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError(path, "not a video that FFmpeg can read") from error
    with container:
        if container.format.name == "tty":  # FFmpeg draws text files as terminal pictures
            raise VideoError(path, "is a text file, not a video")
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            raise VideoError(path, "has no video stream")
        if streams[0].codec_context is None:
            raise VideoError(path, "is in a codec that this FFmpeg cannot decode")
        streams[0].thread_type = "AUTO"
        yield Source(container, streams[0])


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


@define
class Source:
    """One open video; `damage` says after decoding what could not be decoded."""

    container: Any
    stream: Any
    damage: str = ""

    @property
    def step(self) -> float:
        """Seconds between frames where the file does not say it frame by frame."""
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(1 / rate) if rate else 0.04

    @property
    def tolerance(self) -> float:
        """Half a tick of the stream's clock, at most 1 ms: what rounding can move a timestamp."""
        return min(float(self.stream.time_base or 0) / 2, MAX_TOLERANCE) + 1e-9

    def frames(self, start: float = 0.0) -> Iterator[Shown]:
        """Give the frames in the order they are shown, from one on screen at `start` or earlier."""
        decoded = self._decoded()
        first = next(decoded, None)
        if first is None:
            return
        clock = Clock(self.step)
        if start > SEEK_BEYOND and first.pts is not None:
            clock.read(first)
            clock.last = None
            first, decoded = self._seek(first, start)
        yield from map(clock.read, chain([first], decoded))

    def _seek(self, first: Any, start: float) -> tuple[Any, Iterator[Any]]:
        """Give a frame shown at or before `start` and those after it: the very first at worst."""
        needed = first.pts + int(start / first.time_base)
        for stamp in (needed - int(SEEK_MARGIN / first.time_base), first.pts):
            try:
                self.container.seek(stamp, stream=self.stream)
            except av.error.FFmpegError:
                continue
            decoded = self._decoded()
            found = next(decoded, None)
            if found is not None and found.pts is not None and found.pts <= needed:
                return found, decoded
        return first, iter(())

    def _decoded(self) -> Iterator[Any]:
        packets = self.container.demux(self.stream)
        while True:
            try:
                frames = next(packets).decode()
            except (StopIteration, av.error.EOFError):
                return
            except av.error.InvalidDataError as error:
                # One broken packet does not end a video; after a broken container none comes.
                self.damage = self.damage or str(error.strerror)
                continue
            except av.error.FFmpegError as error:
                self.damage = str(error.strerror)
                return
            yield from frames
