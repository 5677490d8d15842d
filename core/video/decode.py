"""Open a video with one clear error, decode it past damage, and make its frames upright pixels.

`open_video` gives a `VideoStream`, whose frames come with the seconds they are on screen;
`resample` picks those that are shown at another frame rate, a `Renderer` makes pixels of them.
`probe` and `fingerprint` say what a file is without reading all of it.
"""

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
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import Colorspace, VideoReformatter
from numpy.typing import NDArray

from ..errors import UserError, printable
from .aperture import Aperture, Cropper, read_aperture
from .placement import Placement

Pixels = NDArray[np.uint8]

MAX_GAP = 600.0  # seconds; a longer pause between two frames is a broken clock
SEEK_BEYOND = 4.0  # seconds; below it decoding from the start is as fast as seeking
SEEK_MARGIN = 1.0  # seconds; containers seek by decoding time, which runs ahead of the frames shown
MAX_TOLERANCE = 1e-3  # seconds; what containers that count in milliseconds round away
HEADROOM = 64 << 20  # bytes that are free where memory is not short
EDGE = 1 << 20  # bytes at either end of a file that go into its fingerprint

# swscale's area averaging with exact chroma and rounding: without these flags pictures from 4:2:0
# come out up to two grey levels too dark. Bit exact, so that machines agree.
SCALING = 0x20 | 0x2000 | 0x4000 | 0x40000 | 0x80000


UNSPECIFIED = 2  # FFmpeg's number of the colour space of a video that names none


def _unnamed(kind: type[SideDataType], value: Any) -> SideDataType:
    """Return a member for a kind of side data that PyAV has no name for.

    PyAV refuses all side data of a frame that has one such kind (EXIF in MJPEG, the views of
    spatial video), and with it the display matrix.
    """
    member = object.__new__(kind)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return member


SideDataType._missing_ = classmethod(_unnamed)  # type: ignore[assignment, method-assign]


class VideoError(UserError):
    """A video file that cannot be used: the message has the file's name and the reason."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{printable(path.name)}: {reason}")


def out_of_memory(path: Path) -> VideoError:
    """Return the error of a video that was not read to its end for want of memory."""
    return VideoError(path, "memory ran short while it was read; run again with more of it free")


def check_memory(path: Path, pixels: int) -> None:
    """Raise where memory is short for frames of so many pixels.

    FFmpeg then calls a sound packet invalid, or cannot convert what it can.

    Raises:
        VideoError: memory is short.
    """
    try:
        np.empty(HEADROOM + 64 * pixels, np.uint8)
    except MemoryError as error:
        raise out_of_memory(path) from error


def check_file(path: Path) -> None:
    """Raise unless `path` is a readable file with something in it.

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
def open_video(path: Path) -> Iterator[VideoStream]:
    """Open a file and yield its first real video stream; cover art is not video.

    Raises:
        VideoError: `check_file` fails, FFmpeg cannot read the file, or it has no video stream that
            this FFmpeg decodes.
    """
    check_file(path)
    try:
        # An absolute path, so that "take:1.mp4" is not taken for a protocol.
        # Timestamps as the file has them: those that FFmpeg would make up for an AVI with B-frames
        # are in another order than its frames (`BestEffort` does what FFmpeg's own tools do).
        container = av.open(
            str(path.resolve()), metadata_errors="replace", options={"fflags": "-genpts"}
        )
    except MemoryError as error:
        raise out_of_memory(path) from error
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
        order = container.streams.video.index(streams[0])
        aperture = read_aperture(path, streams[0].id, order)
        yield VideoStream(container, streams[0], path, aperture)


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


@define
class VideoStream:
    """The video stream of an open file; `damage` says after decoding what could not be decoded.

    `decoded` frames have come, and `ended` says that no more will.
    """

    container: Any
    stream: Any
    path: Path
    aperture: Aperture = Aperture()
    damage: str = ""
    decoded: int = 0
    ended: bool = False

    @property
    def _times_are_of_decoding(self) -> bool:
        return bool(self.container.format.name == "avi")

    @property
    def step(self) -> float:
        """Seconds between frames where the file does not say it frame by frame."""
        # An AVI counts empty frames, too, so that its average may be that of its clock.
        rates = (self.stream.average_rate, self.stream.guessed_rate)
        rate = next(filter(None, rates[::-1] if self._times_are_of_decoding else rates), 0)
        return float(1 / rate) if rate else 0.04

    @property
    def tolerance(self) -> float:
        """Half a tick of the stream's clock, at most 1 ms: what rounding can move a timestamp."""
        return min(float(self.stream.time_base or 0) / 2, MAX_TOLERANCE) + 1e-9

    def frames(self, start: float = 0.0) -> Iterator[TimedFrame]:
        """Yield the frames in the order they are shown, from one shown at `start` or earlier on.

        They are cropped as their container asks for.

        Raises:
            VideoError: memory ran short.
        """
        decoded = self._decoded()
        first = next(decoded, None)
        if first is None:
            return
        clock = Clock(self.step, made_up_ticks=self._times_are_of_decoding)
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
            frame = next(decoded, None)
            if frame is not None and frame.pts is not None and frame.pts <= needed:
                return frame, decoded
        return first, iter(())

    def _decoded(self) -> Iterator[Any]:
        packets, guess = self.container.demux(self.stream), BestEffort()
        crop = Cropper(self.aperture)
        while True:
            try:
                frames = next(packets).decode()
                for frame in frames:
                    frame.pts = guess(frame.pts, frame.dts)
                frames = [crop(frame) for frame in frames]
            except (StopIteration, av.error.EOFError):
                self.ended = True
                return
            except MemoryError as error:
                raise out_of_memory(self.path) from error
            except av.error.InvalidDataError as error:
                # One broken packet does not end a video; after a broken container none comes.
                self._check_memory()
                self.damage = self.damage or str(error.strerror)
                continue
            except av.error.FFmpegError as error:
                self._check_memory()
                self.damage, self.ended = str(error.strerror), True
                return
            self.decoded += len(frames)
            yield from frames

    def _check_memory(self) -> None:
        check_memory(self.path, self.stream.width * self.stream.height)


@define
class BestEffort:
    """Chooses between the two timestamps of decoded frames, as libavcodec's best effort does.

    Where frames lack the time of their presentation (AVI), or its order is broken more often than
    that of decoding, the time of decoding counts: it grows by one frame a frame.
    """

    faulty_pts: int = 0
    faulty_dts: int = 0
    last_pts: float = float("-inf")
    last_dts: float = float("-inf")

    def __call__(self, pts: int | None, dts: int | None) -> int | None:
        """Return the timestamp of the next frame; the calls follow the order of the frames."""
        if dts is not None:
            self.faulty_dts += dts <= self.last_dts
            self.last_dts = dts
        elif pts is not None:
            self.last_dts = pts
        if pts is not None:
            self.faulty_pts += pts <= self.last_pts
            self.last_pts = pts
        elif dts is not None:
            self.last_pts = dts
        if pts is not None and (self.faulty_pts <= self.faulty_dts or dts is None):
            return pts
        return dts


@frozen
class TimedFrame:
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
    made_up_ticks: bool = False  # whether a length of one tick says nothing (AVI)
    origin: float | None = None
    last: TimedFrame | None = None

    def read(self, frame: Any) -> TimedFrame:
        """Return `frame` with its time; the calls follow the order of the frames."""
        follows = self.last.end if self.last else 0.0
        timed = frame.pts is not None and frame.time_base is not None
        time = self._steady(float(frame.pts * frame.time_base), follows) if timed else follows
        self.last = TimedFrame(time, time + self._length(frame, time), frame)
        return self.last

    def _length(self, frame: Any, time: float) -> float:
        """Return how long a frame is shown.

        A single tick is what FFmpeg makes up for an AVI whose clock is finer than its frames; the
        pause before the frame is the better guess then.
        """
        if not frame.duration:
            return self.step
        length = float(frame.duration * frame.time_base)
        pause = time - self.last.time if self.last else 0.0
        made_up = self.made_up_ticks and frame.duration == 1 and pause > 1.5 * length
        return pause if made_up else length

    def _steady(self, stamp: float, follows: float) -> float:
        if self.origin is None:
            self.origin = stamp - follows
        time = stamp - self.origin
        if self.last is None or self.last.time <= time <= self.last.time + MAX_GAP:
            return time
        self.origin = stamp - follows
        return follows


def resample(
    frames: Iterable[TimedFrame], fps: float, start: float, tolerance: float
) -> Iterator[tuple[Any, float]]:
    """Yield, for k = 0, 1, …, the frame on screen at `start` + k / `fps` and the end of the video.

    That is the last frame whose time is at most start + k/fps + tolerance. The end (seconds) is
    what is known so far: at the last value it is when the last decoded frame leaves the screen.
    """
    count, shown = 0, None
    for following in frames:
        while shown is not None and start + count / fps + tolerance < following.time:
            yield shown.frame, shown.end
            count += 1
        shown = following
    while shown is not None and start + count / fps + tolerance < shown.end:
        yield shown.frame, shown.end
        count += 1


@frozen(kw_only=True)
class VideoInfo:
    """What a video is before anything is done to it."""

    width: int  # of the upright picture in square pixels
    height: int
    seconds: float  # that the file declares for its video stream; counted where it declares none
    fps: float  # on average
    rotation: int  # degrees clockwise that players turn the picture by: 0, 90, 180, 270
    orientation: Orientation = field(repr=False)  # the same, with mirroring


def probe(path: Path) -> VideoInfo:
    """Read size, length and frame rate of a video; one frame is decoded.

    Raises:
        VideoError: the file is missing, unreadable, empty, not a video, has no video stream (only
            sound, or cover art), or not one frame can be decoded.
    """
    with open_video(path) as video:
        first = next(video.frames(), None)
        if first is None:
            raise VideoError(path, "not one frame can be decoded")
        orientation = Orientation.of(first.frame)
        height, width = square_size(first.frame, video.stream.sample_aspect_ratio)
        seconds = _declared_seconds(video)
        timed = first.frame.pts is not None  # else the rate is FFmpeg's default of 25
        return VideoInfo(
            width=height if orientation.transpose else width,
            height=width if orientation.transpose else height,
            seconds=_counted_seconds(path) if seconds is None else seconds,
            fps=1 / (video.step if timed else first.end),
            rotation=orientation.degrees,
            orientation=orientation,
        )


def starts_late(path: Path) -> float:
    """Return how many seconds a video's first frame comes after the start of its file.

    That is where players begin, as with the sound. 0 where it is less than half a frame: sound
    begins a little early for its decoder's sake.

    Raises:
        VideoError: the file cannot be opened as video, or not one frame can be decoded.
    """
    with open_video(path) as video:
        first = next(video.frames(), None)
        if first is None:
            raise VideoError(path, "not one frame can be decoded")
        begin, frame = video.container.start_time, first.frame
        if begin is None or frame.pts is None:
            return 0.0
        ticks = frame.pts
        if video.container.format.name == "avi":  # there frames have the time of their decoding
            ticks = video.stream.start_time or 0
        late = float(ticks * frame.time_base) - begin / 1e6
        return late if video.step / 2 <= late <= MAX_GAP else 0.0


def _declared_seconds(video: VideoStream) -> float | None:
    stream, container = video.stream, video.container
    if stream.duration:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))  # Matroska
    if tag:
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])
    alone = len(container.streams) == 1  # else the sound may be what lasts so long
    return float(container.duration / 1e6) if container.duration and alone else None


def _counted_seconds(path: Path) -> float:
    """Return the seconds that the packets of a file last or span, without decoding them."""
    with open_video(path) as video:
        total, first, last = 0.0, float("inf"), 0.0
        for packet in video.container.demux(video.stream):
            length = float(packet.duration * packet.time_base) if packet.duration else video.step
            total += length if packet.size else 0.0
            ticks = packet.dts if packet.pts is None else packet.pts
            if ticks is not None:
                stamp = float(ticks * packet.time_base)
                first, last = min(first, stamp), max(last, stamp + length)
        return last - first if last > first else total


def fingerprint(path: Path) -> str:
    """Compute a cheap identity of a file's content: 64 hex digits.

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
class Orientation:
    """How decoded pixels become upright: they are transposed first, then mirrored."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    degrees: int = 0  # clockwise, as players turn the picture

    @classmethod
    def of(cls, frame: Any) -> Orientation:
        """Return what the frame's display matrix asks for, to the nearest quarter turn."""
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
    orientation: Orientation
    reformatter: Any = Factory(VideoReformatter)

    def __call__(self, frame: Any) -> Pixels:
        """Return the pixels of a frame; one of another size than the first is stretched."""
        placement = self.placement
        height, width = placement.resized_height, placement.resized_width
        if self.orientation.transpose:
            height, width = width, height
        resized = self.reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=SCALING,
            src_colorspace=_colorspace(frame),
        )
        pixels = self.orientation(resized.to_ndarray())
        rows = slice(placement.crop_top, placement.crop_top + placement.height)
        columns = slice(placement.crop_left, placement.crop_left + placement.width)
        return np.ascontiguousarray(pixels[rows, columns])


def _colorspace(frame: Any) -> Colorspace | None:
    """Return BT.709 for high definition that names no colours, as players do; None: as it says."""
    high = frame.width >= 1280 or frame.height > 576
    return Colorspace.ITU709 if high and frame.colorspace == UNSPECIFIED else None
