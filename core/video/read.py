"""Read video by its timestamps, upright and at any size, in chunks or whole."""

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
    VideoError,
    VideoInfo,
    VideoStream,
    check_memory,
    open_video,
    out_of_memory,
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
) -> FrameChunks:
    """Read the frames of a video as chunks uint8 [n ≤ `chunk`, H, W, 3], in bounded memory.

    Frame k is the one on screen at `start` + k/`fps` seconds after the first frame: the last whose
    timestamp is not later (by half a tick of the file's clock, at most 1 ms). Frames are upright,
    in square pixels, RGB, alpha dropped; HDR is not tone mapped, interlacing is left as it is.

    Args:
        path: the video file.
        fps: frames a second to read at, whatever the file's own rate.
        size: None keeps the video's size; (height, width) is covered and centre cropped; a
            `Placement` says where to resize and crop.
        start: seconds after the first frame.
        count: at most so many frames; None: to the end.
        minimum: fewer frames than this are an error.
        chunk: frames in a chunk.

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
    placement = _placement(path, info, size)
    least = minimum if count is None else min(minimum, count)
    return FrameChunks(path, info, placement, fps, start, count, least, chunk)


def _placement(path: Path, info: VideoInfo, size: tuple[int, int] | Placement | None) -> Placement:
    if not isinstance(size, Placement):
        return cover(info.width, info.height, size or (info.height, info.width))
    if (size.source_width, size.source_height) != (info.width, info.height):
        raise VideoError(path, f"is {info.width}x{info.height}, but was to be placed as {size}")
    return size


@define
class FrameChunks:
    """The chunks uint8 [n, H, W, 3] of a video; iterate once.

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
        try:
            return next(self._chunks)
        except MemoryError as error:
            raise out_of_memory(self.path) from error

    def _read(self) -> Iterator[Pixels]:
        pictures = self._pictures()
        while chunk := list(islice(pictures, self.chunk)):
            yield np.stack(chunk)

    def _pictures(self) -> Iterator[Pixels]:
        count, end = 0, 0.0
        last: Any = None
        render = Renderer(self.placement, self.info.orientation)
        with open_video(self.path) as video:
            frames = resample(video.frames(self.start), self.fps, self.start, video.tolerance)
            for frame, end in islice(frames, self.count):  # noqa: B007  # the last end is judged
                if frame is not last:  # a frame shown more than once is rendered once
                    last, picture = frame, self._render(render, frame)
                count += 1
                yield picture
            self._check_end(video, count, end)

    def _render(self, render: Renderer, frame: Any) -> Pixels:
        try:
            return render(frame)
        except MemoryError as error:
            raise out_of_memory(self.path) from error
        except (av.error.FFmpegError, ValueError) as error:
            check_memory(self.path, frame.width * frame.height)
            reason = f"its pixels ({frame.format.name}) cannot be made RGB"
            raise VideoError(self.path, reason) from error

    def _check_end(self, video: VideoStream, count: int, end: float) -> None:
        """Set the warning after `count` frames, the last of which is shown until `end` seconds."""
        complete = self.count is not None and count >= self.count
        if video.damage:
            self._check_again(video)
            self.warning = f"parts could not be decoded ({video.damage})"
        if count and not complete and end < self.info.seconds - 0.5 - 2 * video.step:
            self.truncated = True
            self.warning = f"truncated: {end:.1f} of {self.info.seconds:.1f} s could be decoded"
        if count < self.minimum:
            why = self.warning or f"the video has {self.info.seconds:.1f} s"
            frames = f"{count} frames at {self.fps:g} fps from {self.start:g} s"
            raise VideoError(self.path, f"gives {frames}, at least {self.minimum} needed; {why}")

    def _check_again(self, first: VideoStream) -> None:
        """Decode a damaged video once more: what is the file's fault comes again, all else not.

        Raises:
            VideoError: another number of frames came.
        """
        if not first.ended:
            return
        with open_video(self.path) as second:
            for _ in second.frames(self.start):
                pass
            if second.decoded != first.decoded:
                counts = f"{first.decoded} and {second.decoded} frames came"
                reason = f"read twice, {counts}; memory may be short: run again with more of it"
                raise VideoError(self.path, reason)


@frozen(eq=False)
class DecodedVideo:
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
) -> DecodedVideo:
    """Read the frames of a video at once, uint8 [F, H, W, 3]; arguments and errors: `iter_frames`.

    `torch.from_numpy(video.frames)` makes a tensor of them without a copy.
    """
    chunks = iter_frames(path, fps=fps, size=size, start=start, count=count, minimum=minimum)
    frames = list(chunks)
    empty = np.zeros((0, chunks.placement.height, chunks.placement.width, 3), np.uint8)
    return DecodedVideo(
        np.concatenate(frames) if frames else empty,
        chunks.info,
        chunks.placement,
        chunks.warning,
        chunks.truncated,
    )
