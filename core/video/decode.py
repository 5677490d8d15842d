"""Opening a video with one clear error, and decoding it past damage."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from attrs import Factory, define, field, frozen
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from ..errors import UserError, printable
from .placement import Placement

# ⟦core/data/timing.py⟧ When decoded frames are on screen, and which of them are shown at another frame rate.


MAX_GAP = 600.0  # seconds; a longer pause between two frames is a broken clock


@frozen
class Shown:
    """A decoded frame and when it is on screen, in seconds after the first frame."""

    time: float
    end: float
    frame: Any


@define
class Clock:
    """Turns the frames' timestamps into seconds that start at 0 and never run backwards.

    Where a timestamp is missing, runs backwards or jumps by more than ten minutes (joined
    recordings, broken muxers), a frame follows the end of the one before.
    """

    step: float  # seconds that a frame lasts where it does not say
    origin: float | None = None
    last: Shown | None = None

    def read(self, frame: Any) -> Shown:
        """Return `frame` with its time; the calls follow the order of the frames."""
        follows = self.last.end if self.last else 0.0
        timed = frame.pts is not None and frame.time_base is not None
        time = self._steady(float(frame.pts * frame.time_base), follows) if timed else follows
        length = float(frame.duration * frame.time_base) if frame.duration else self.step
        self.last = Shown(time, time + length, frame)
        return self.last

    def _steady(self, stamp: float, follows: float) -> float:
        if self.origin is None:
            self.origin = stamp - follows
        time = stamp - self.origin
        if self.last is None or self.last.time <= time <= self.last.time + MAX_GAP:
            return time
        self.origin = stamp - follows
        return follows


def resample(
    shown: Iterable[Shown], fps: float, start: float, tolerance: float
) -> Iterator[tuple[Any, float]]:
    """Give, for k = 0, 1, …, the frame on screen at `start` + k / `fps` and the end of the video.

    That is the last frame whose time is at most start + k/fps + tolerance. The end (seconds) is
    what is known so far: at the last value it is when the last decoded frame leaves the screen.
    """
    count, held = 0, None
    for now in shown:
        while held is not None and start + count / fps + tolerance < now.time:
            yield held.frame, held.end
            count += 1
        held = now
    while held is not None and start + count / fps + tolerance < held.end:
        yield held.frame, held.end
        count += 1


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
    """Yield the first real video stream of a file, open for decoding; cover art is not video.

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
        """Yield the frames in the order they are shown, from one on screen at `start` or earlier."""
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
        """Return a frame shown at or before `start` and those after it: the very first at worst."""
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


# ⟦core/data/picture.py⟧ From a decoded frame to pixels: upright, square, resized by area and cropped.


Pixels = NDArray[np.uint8]

# swscale's area averaging with exact chroma and rounding: without these flags pictures from 4:2:0
# come out up to two grey levels too dark. Bit exact, so that machines agree.
SCALING = 0x20 | 0x2000 | 0x4000 | 0x40000 | 0x80000


def square_size(frame: Any, aspect: Fraction | None) -> tuple[int, int]:
    """Return height and width of a frame in square pixels, never fewer than it has.

    `aspect` is width over height of one pixel. Within 2 % of square it is what an encoder rounded
    the size by, beyond 1:8 an error of the file; both are taken for square, as none is.
    """
    if not aspect or not Fraction(1, 8) <= aspect <= 8 or abs(aspect - 1) < Fraction(1, 50):
        return frame.height, frame.width
    if aspect >= 1:
        return frame.height, round(frame.width * aspect)
    return round(frame.height / aspect), frame.width


@frozen
class Turn:
    """How decoded pixels become upright: transposed first, then mirrored."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    degrees: int = 0  # clockwise, as players turn the picture

    @classmethod
    def of(cls, frame: Any) -> Turn:
        """Return the turn that the frame's display matrix asks for, to the nearest quarter."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        matrix = np.frombuffer(bytes(data), dtype=np.int32).astype(float)
        # A source pixel (x, y) is shown at (across·x + back·y, down·x + ahead·y).
        across, down, back, ahead = matrix[0], matrix[1], matrix[3], matrix[4]
        degrees = int(np.round(np.degrees(np.arctan2(down, across)) / 90)) * 90 % 360
        if abs(across) + abs(ahead) >= abs(down) + abs(back):
            return cls(False, bool(ahead < 0), bool(across < 0), degrees)
        return cls(True, bool(down < 0), bool(back < 0), degrees)

    def __call__(self, pixels: Pixels) -> Pixels:
        """Return `pixels` [H, W, 3] upright."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@define
class Renderer:
    """Makes frames of one video into pixels [H, W, 3] at a placement, RGB, alpha dropped."""

    placement: Placement
    turn: Turn
    reformatter: Any = Factory(VideoReformatter)

    def __call__(self, frame: Any) -> Pixels:
        """Return the pixels of `frame`; a frame of another size than the first is stretched."""
        placed = self.placement
        height, width = placed.resized_height, placed.resized_width
        if self.turn.transpose:
            height, width = width, height
        resized = self.reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=SCALING
        )
        pixels = self.turn(resized.to_ndarray())
        rows = slice(placed.crop_top, placed.crop_top + placed.height)
        columns = slice(placed.crop_left, placed.crop_left + placed.width)
        return np.ascontiguousarray(pixels[rows, columns])


# ⟦core/data/probe.py⟧ What a video file is, told without reading all of it.


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
    """Return size, length and frame rate of a video; decodes one frame.

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
    """Return the seconds that the packets of a file last or span, without decoding them."""
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
    """Return a cheap identity of a file's content: 64 hex digits.

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
