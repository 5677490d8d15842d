"""Write H.264 that players and browsers open, with PyAV's own libx264."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from ..errors import UserError
from ..tools.files import whole_file
from .decode import SCALING, Pixels
from .sound import SoundTrack

# Some of x264's fast code (of macroblock trees) rounds otherwise now and then: 4 of 60 files of the
# same frames differed. This leaves it out.
REPEATABLE = "cpu-independent=1"
BT709, LIMITED = 1, 1  # FFmpeg's numbers of the colour space and range that are written and tagged


def write_video(
    path: Path,
    frames: Iterable[Pixels],
    fps: float,
    crf: int = 18,
    comment: str = "",
    *,
    repeatable: bool = False,
) -> None:
    """Write `frames` as an H.264 mp4 at `path`; the file appears whole or not at all.

    Colours are 4:2:0, or 4:4:4 where a side is odd so that the size stays (browsers do not play
    that).

    Args:
        path: replaced where it exists; its folder is made.
        frames: uint8 [F, H, W, 3], or an iterable of [H, W, 3], which is never held whole.
        fps: frames a second.
        crf: quality of libx264, 0 (lossless but for the colour conversion) to 51 (worst).
        comment: for the file's metadata.
        repeatable: whether the same frames must always give the same bytes.

    Raises:
        UserError: no frame came, `fps` is not positive, a frame is not uint8 [H, W, 3] of the
            first one's size, or the disk refuses.
    """
    if not fps > 0:
        raise UserError(f"a video needs a positive frame rate, not {fps}")
    with whole_file(path) as part:
        rate = Fraction(fps).limit_denominator(1001)
        _encode(part, iter(frames), rate, crf, comment, repeatable)


def _encode(
    part: Path, frames: Iterable[Pixels], rate: Fraction, crf: int, comment: str, repeatable: bool
) -> None:
    stream, size, reformatter = None, (0, 0), VideoReformatter()
    with av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}) as container:
        container.metadata["comment"] = comment
        for index, pixels in enumerate(frames):
            if stream is None:
                size = pixels.shape[:2]
                stream = _stream(container, size, rate, crf, repeatable)
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


def join_videos(
    path: Path,
    clips: Sequence[Path],
    comment: str = "",
    sound: Path | None = None,
    sound_end: float | None = None,
    title: str = "",
) -> int:
    """Join mp4 files that `write_video` wrote alike, without encoding again; return the frames.

    The file appears whole or not at all.

    Args:
        path: replaced where it exists.
        clips: at least one, in order.
        comment: for the file's metadata.
        sound: a file of `keep_sound`, which begins with the first picture; None: there is none.
        sound_end: seconds after which the rest of it is left out.
        title: for the file's metadata; "": it has none.

    Raises:
        UserError: a clip or the sound cannot be read, a clip was encoded otherwise than the first,
            or the disk refuses.
    """
    with whole_file(path) as part:
        options = {"movflags": "faststart"}
        with av.open(str(part), "w", format="mp4", options=options) as container:
            container.metadata["comment"] = comment
            if title:
                container.metadata["title"] = title
            track = None if sound is None else SoundTrack(sound, sound_end)
            try:
                return _copy_packets(container, clips, track)
            finally:
                if track is not None:
                    track.close()


def _copy_packets(container: Any, clips: Sequence[Path], sound: SoundTrack | None) -> int:
    out, kind, frames = None, None, 0
    for clip in clips:
        try:
            opened = av.open(str(clip))
        except (av.error.FFmpegError, OSError) as error:
            raise UserError(f"{clip} is no clip that can be read: {error}") from None
        with opened as source:
            stream = source.streams.video[0]
            context = stream.codec_context
            own = (context.extradata, stream.average_rate, context.width, context.height)
            if out is None:
                out, kind = container.add_stream_from_template(stream), own
                out.time_base = 1 / stream.average_rate
                if sound is not None:
                    sound.begin(container)
            if own != kind:
                raise UserError(f"{clip} is encoded otherwise than {clips[0]}: it is not joined")
            first = frames
            for packet in source.demux(stream):
                if packet.dts is None:  # the end
                    continue
                ticks = packet.time_base * stream.average_rate  # frames to a tick
                packet.pts = first + round(packet.pts * ticks)
                packet.dts = first + round(packet.dts * ticks)
                packet.duration = 1
                packet.time_base = 1 / stream.average_rate
                packet.stream = out
                if sound is not None:
                    sound.write_until(container, Fraction(packet.dts) * packet.time_base)
                container.mux(packet)
                frames += 1
    if out is None:
        raise UserError("no clip to join")
    if sound is not None:
        sound.write_until(container, None)
    return frames


def count_frames(path: Path, comment: str | None = None, title: str = "") -> int | None:
    """Return how many frames a video file holds, without decoding.

    None: it is not of that comment and title, where a comment is named.

    None also where it cannot be read, or was cut short.
    """
    try:
        with av.open(str(path)) as source:
            told = (source.metadata.get("comment"), source.metadata.get("title", ""))
            if comment is not None and told != (comment, title):
                return None
            stream = source.streams.video[0]
            packets = [p for p in source.demux(stream) if p.dts is not None]
            damaged = any(packet.is_corrupt or not packet.size for packet in packets)
            return None if damaged or len(packets) != stream.frames else len(packets)
    except (av.error.FFmpegError, OSError, IndexError):
        return None


def comment_of(path: Path) -> str | None:
    """Return the comment in a video file's metadata; None where it has none or cannot be read."""
    try:
        with av.open(str(path)) as source:
            found: str | None = source.metadata.get("comment")
            return found
    except (av.error.FFmpegError, OSError):
        return None


def _stream(
    container: Any, size: tuple[int, int], rate: Fraction, crf: int, repeatable: bool
) -> Any:
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width = size
    stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
    exact = {"x264-params": REPEATABLE} if repeatable else {}
    stream.options = {"crf": str(crf), "preset": "medium", **exact}
    context = stream.codec_context
    context.colorspace, context.color_range = BT709, LIMITED
    context.color_primaries, context.color_trc = BT709, BT709
    return stream
