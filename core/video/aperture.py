"""The part of the picture that a container asks players to show: `clap` of MP4, crop of Matroska.

FFmpeg's own tools apply it, its decoders do not, and PyAV does not hand it on: it is read from the
file's headers here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from attrs import define, frozen
from av.filter import Graph

ENTRY = 78  # bytes of a video sample entry before the boxes inside it (ISO 14496-12)
HEADERS = 64  # boxes of one level that are looked at; fragmented files have thousands behind them
SEGMENT, TRACKS, TRACK, VIDEO, CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0xE0, 0x1F43B675
KIND, IS_VIDEO = 0x83, 1  # of a track
SIDES = {0x54CC: "left", 0x54DD: "right", 0x54BB: "top", 0x54AA: "bottom"}

Span = tuple[int, int]  # of bytes in a file


@frozen(kw_only=True)
class Aperture:
    """Pixels of the coded picture that are not shown, at each side."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def fits(self, width: int, height: int) -> bool:
        """Return whether it leaves something of such a picture, and takes something away."""
        sides = (self.left, self.right, self.top, self.bottom)
        shown = self.left + self.right < width and self.top + self.bottom < height
        return shown and min(sides) >= 0 and max(sides) > 0


def read_aperture(path: Path, track: int, order: int = 0) -> Aperture:
    """Return what the container crops off a video track; nothing where it says none.

    Headers that are damaged, and containers that know no crop, say none.

    Args:
        path: the video file.
        track: id of the track in an MP4.
        order: which of the video tracks it is, from 0, in a Matroska file.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(8)
            end = file.seek(0, 2)
            if magic[:4] == b"\x1a\x45\xdf\xa3":
                return _matroska(file, order, end)
            if magic[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
                return _mp4(file, track, end)
    except (OSError, struct.error, ZeroDivisionError, OverflowError):
        pass
    return Aperture()


def _mp4(file: BinaryIO, track: int, end: int) -> Aperture:
    for movie in _boxes(file, (0, end), b"moov"):
        for trak in _boxes(file, movie, b"trak"):
            if _track_id(file, trak) == track:
                return _clap(file, trak)
    return Aperture()


def _boxes(file: BinaryIO, span: Span, *kinds: bytes) -> Iterator[Span]:
    """Yield where the contents of boxes lie, by a path of kinds below `span`."""
    at, end = span
    for _ in range(HEADERS):
        if at + 8 > end:
            return
        file.seek(at)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            size, head = struct.unpack(">Q", file.read(8))[0], 16
        stop = end if size == 0 else min(at + size, end)
        if stop < at + head:
            return
        if kind == kinds[0]:
            inside = (at + head, stop)
            yield from _boxes(file, inside, *kinds[1:]) if kinds[1:] else (inside,)
        at = stop


def _track_id(file: BinaryIO, trak: Span) -> int | None:
    for begin, _ in _boxes(file, trak, b"tkhd"):
        file.seek(begin)
        version = file.read(1)[:1]
        file.seek(begin + (20 if version == b"\x01" else 12))
        return int(struct.unpack(">I", file.read(4))[0])
    return None


def _clap(file: BinaryIO, trak: Span) -> Aperture:
    """Return the clean aperture of a track, rounded as FFmpeg rounds it."""
    for begin, end in _boxes(file, trak, b"mdia", b"minf", b"stbl", b"stsd"):
        entry = begin + 8 + 8  # behind version, flags and count, and the entry's own header
        file.seek(entry + 24)
        width, height = struct.unpack(">HH", file.read(4))
        for clap, _ in _boxes(file, (entry + ENTRY, end), b"clap"):
            file.seek(clap)
            n = struct.unpack(">IIIIiIiI", file.read(32))
            left, right = _sides(width, Fraction(n[0], n[1]), Fraction(n[4], n[5]))
            top, bottom = _sides(height, Fraction(n[2], n[3]), Fraction(n[6], n[7]))
            return Aperture(left=left, right=right, top=top, bottom=bottom)
    return Aperture()


def _sides(full: int, shown: Fraction, offset: Fraction) -> Span:
    first = Fraction(full - shown) / 2 + offset
    last = full - shown - first
    return int(first + Fraction(1, 2)), int(last + Fraction(1, 2))


def _matroska(file: BinaryIO, order: int, end: int) -> Aperture:
    for segment in _elements(file, (0, end), SEGMENT):
        entries = list(_elements(file, segment, TRACKS, TRACK))
        kinds = [[_uint(file, at) for at in _elements(file, entry, KIND)] for entry in entries]
        videos = [entry for entry, kind in zip(entries, kinds, strict=True) if kind == [IS_VIDEO]]
        if order < len(videos):
            found = {
                name: _uint(file, at)
                for kind, name in SIDES.items()
                for at in _elements(file, videos[order], VIDEO, kind)
            }
            return Aperture(**found)
    return Aperture()


def _elements(file: BinaryIO, span: Span, *kinds: int) -> Iterator[Span]:
    """Yield where the contents of EBML elements lie, by a path of ids; none behind a cluster."""
    at, end = span
    while at < end:
        file.seek(at)
        kind = _vint(file, keep=True)
        size = _vint(file, keep=False)
        if kind is None or size is None or kind == CLUSTER:
            return
        begin = file.tell()
        stop = end if size < 0 else min(begin + size, end)
        if kind == kinds[0]:
            inside = (begin, stop)
            yield from _elements(file, inside, *kinds[1:]) if kinds[1:] else (inside,)
        at = stop


def _vint(file: BinaryIO, *, keep: bool) -> int | None:
    """Return a number of variable length, with its marker where `keep`; −1 is "unknown"."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big")
    if keep:
        return value
    value &= (1 << 7 * length) - 1
    return -1 if value == (1 << 7 * length) - 1 else value


def _uint(file: BinaryIO, span: Span) -> int:
    file.seek(span[0])
    return int.from_bytes(file.read(min(span[1] - span[0], 8)), "big")


@define
class Cropper:
    """Takes the parts of frames that are to be shown, without copying them."""

    aperture: Aperture
    graph: Any = None
    made_for: tuple[Any, ...] = ()

    def __call__(self, frame: Any) -> Any:
        """Return the part of a frame that its container shows, with the frame's times."""
        if not self.aperture.fits(frame.width, frame.height):
            return frame
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self.made_for:
            self.graph, self.made_for = self._graph(frame), kind
        pts, base = frame.pts, frame.time_base
        self.graph.push(frame)
        cropped = self.graph.pull()
        cropped.pts, cropped.time_base = pts, base
        return cropped

    def _graph(self, frame: Any) -> Graph:
        side = self.aperture
        graph = Graph()
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        width, height = f"iw-{side.left + side.right}", f"ih-{side.top + side.bottom}"
        crop = graph.add("crop", f"w={width}:h={height}:x={side.left}:y={side.top}")
        sink = graph.add("buffersink")
        source.link_to(crop)
        crop.link_to(sink)
        graph.configure()
        return graph
