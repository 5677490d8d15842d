"""Write H.264 that players and browsers open, with PyAV's own libx264."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ..errors import UserError
from ..tools.files import whole_file
from .decode import SCALING, Pixels

BT709, LIMITED = 1, 1  # FFmpeg's numbers of the colour space and range that are written and tagged


def write_video(path: Path, frames: Iterable[Pixels], fps: float, crf: int = 18) -> None:
    """Write `frames` as an H.264 mp4 at `path`; the file appears whole or not at all.

    Colours are 4:2:0, or 4:4:4 where a side is odd so that the size stays (browsers do not play
    that).

    Args:
        path: replaced where it exists; its folder is made.
        frames: uint8 [F, H, W, 3], or an iterable of [H, W, 3], which is never held whole.
        fps: frames a second.
        crf: quality of libx264, 0 (lossless but for the colour conversion) to 51 (worst).

    Raises:
        UserError: no frame came, `fps` is not positive, a frame is not uint8 [H, W, 3] of the
            first one's size, or the disk refuses.
    """
    if not fps > 0:
        raise UserError(f"a video needs a positive frame rate, not {fps}")
    with whole_file(path) as part:
        _encode(part, iter(frames), Fraction(fps).limit_denominator(1001), crf)


def _encode(part: Path, frames: Iterable[Pixels], rate: Fraction, crf: int) -> None:
    stream, size, reformatter = None, (0, 0), VideoReformatter()
    with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
        for index, pixels in enumerate(frames):
            if stream is None:
                size = pixels.shape[:2]
                stream = _stream(container, size, rate, crf)
            if pixels.dtype != np.uint8 or pixels.shape != (*size, 3):
                raise UserError(f"frame {index} is {pixels.dtype} {pixels.shape}, not the first's")
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24"),
                format=stream.pix_fmt,
                dst_colorspace=BT709,
                interpolation=SCALING,
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        if stream is None:
            raise UserError("a video needs at least one frame")
        container.mux(stream.encode())


def _stream(container: Any, size: tuple[int, int], rate: Fraction, crf: int) -> Any:
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
    stream.options = {"crf": str(crf), "preset": "medium"}
    context = stream.codec_context
    context.colorspace, context.color_range = BT709, LIMITED
    context.color_primaries, context.color_trc = BT709, BT709
    return stream
