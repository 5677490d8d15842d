"""Reading video by its timestamps, upright and at any size; `write_video` is here too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from attrs import define, field, frozen

from ..errors import UserError
from .decode import (
    Pixels,
    Renderer,
    Source,
    VideoError,
    VideoInfo,
    opened,
    probe,
    resample,
)
from .placement import Placement, cover

CHUNK = 64  # frames


def iter_frames(
    path: Path,
    *,
    fps: float,
    size: tuple[int, int] | Placement | None = None,
    start: float = 0.0,
    count: int | None = None,
    minimum: int = 1,
    chunk: int = CHUNK,
) -> Frames:
    """Return the frames of a video as chunks uint8 [n ≤ `chunk`, H, W, 3], in bounded memory.

    Frame k is the one on screen at `start` + k/`fps` seconds after the first frame: the last whose
    timestamp is not later (by half a tick of the file's clock, at most 1 ms). Frames are upright,
    in square pixels, RGB, alpha dropped; HDR is not tone mapped, interlacing is left as it is.

    Args:
        path: The video file.
        fps: Frames a second to read at, whatever the file's own rate.
        size: Nothing keeps the video's size; (height, width) is covered and centre cropped; a
            `Placement` says where to resize and crop.
        start: Seconds after the first frame.
        count: At most so many frames; nothing means to the end.
        minimum: Fewer frames than this are an error.
        chunk: Frames in a chunk.

    Raises:
        UserError: `fps` or `chunk` is not positive, `start` or `count` is negative.
        VideoError: as `probe`; `size` is a placement of a video of another size; at the end of the
            iteration: fewer than `minimum` frames came.
    """
    if not (0 < fps < float("inf") and chunk > 0 and 0 <= start < float("inf")):
        raise UserError(f"cannot read at {fps} fps from {start} s in chunks of {chunk}")
    if count is not None and count < 0:
        raise UserError(f"cannot read {count} frames")
    info = probe(path)
    placed = _placement(path, info, size)
    least = minimum if count is None else min(minimum, count)
    return Frames(path, info, placed, fps, start, count, least, chunk)


def _placement(path: Path, info: VideoInfo, size: tuple[int, int] | Placement | None) -> Placement:
    if not isinstance(size, Placement):
        return cover(info.width, info.height, size or (info.height, info.width))
    if (size.source_width, size.source_height) != (info.width, info.height):
        raise VideoError(path, f"is {info.width}x{info.height}, but was to be placed as {size}")
    return size


@define
class Frames:
    """Chunks uint8 [n, H, W, 3] of a video; iterate once.

    After the last chunk `warning` says what was wrong with the file (empty: nothing), `truncated`
    whether it ended earlier than it declares.
    """

    path: Path
    info: VideoInfo
    placement: Placement
    fps: float
    start: float
    count: int | None
    minimum: int
    chunk: int
    warning: str = ""
    truncated: bool = False
    _chunks: Iterator[Pixels] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._chunks = self._read()

    def __iter__(self) -> Iterator[Pixels]:
        return self

    def __next__(self) -> Pixels:
        return next(self._chunks)

    def _read(self) -> Iterator[Pixels]:
        pictures = self._pictures()
        while chunk := list(islice(pictures, self.chunk)):
            yield np.stack(chunk)

    def _pictures(self) -> Iterator[Pixels]:
        given, end = 0, 0.0
        held: Any = None
        render = Renderer(self.placement, self.info.turn)
        with opened(self.path) as source:
            shown = resample(source.frames(self.start), self.fps, self.start, source.tolerance)
            for frame, end in islice(shown, self.count):  # noqa: B007  # the last end is judged
                if frame is not held:  # a frame shown more than once is rendered once
                    held, picture = frame, self._rendered(render, frame)
                given += 1
                yield picture
            self._judge(source, given, end)

    def _rendered(self, render: Renderer, frame: Any) -> Pixels:
        try:
            return render(frame)
        except (av.error.FFmpegError, ValueError) as error:
            reason = f"its pixels ({frame.format.name}) cannot be made RGB"
            raise VideoError(self.path, reason) from error

    def _judge(self, source: Source, given: int, end: float) -> None:
        whole = self.count is not None and given >= self.count
        if source.damage:
            self.warning = f"parts could not be decoded ({source.damage})"
        if given and not whole and end < self.info.seconds - 0.5 - 2 * source.step:
            self.truncated = True
            self.warning = f"truncated: {end:.1f} of {self.info.seconds:.1f} s could be decoded"
        if given < self.minimum:
            why = self.warning or f"the video has {self.info.seconds:.1f} s"
            found = f"{given} frames at {self.fps:g} fps from {self.start:g} s"
            raise VideoError(self.path, f"gives {found}, at least {self.minimum} needed; {why}")


@frozen(eq=False)
class Clip:
    """Frames of a video in memory, and what was done to get them."""

    frames: Pixels = field(repr=False)  # [F, H, W, 3]
    info: VideoInfo
    placement: Placement
    warning: str  # what was wrong with the file, empty where nothing was
    truncated: bool  # the file ended earlier than it declares


def read_frames(
    path: Path,
    *,
    fps: float,
    size: tuple[int, int] | Placement | None = None,
    start: float = 0.0,
    count: int | None = None,
    minimum: int = 1,
) -> Clip:
    """Return the frames of a video at once, uint8 [F, H, W, 3]; arguments and errors: `iter_frames`.

    `torch.from_numpy(clip.frames)` makes a tensor of them without a copy.
    """
    chunks = iter_frames(path, fps=fps, size=size, start=start, count=count, minimum=minimum)
    frames = list(chunks)
    empty = np.zeros((0, chunks.placement.height, chunks.placement.width, 3), np.uint8)
    return Clip(
        np.concatenate(frames) if frames else empty,
        chunks.info,
        chunks.placement,
        chunks.warning,
        chunks.truncated,
    )
