"""Find the hard cuts of a video with PySceneDetect, the extra `longtake[cuts]`."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import av
from attrs import define, field
from av.video.reformatter import VideoReformatter

from ..errors import UserError
from .decode import Pixels, VideoError, VideoStream, open_video

SIDE = 256  # pixels; frames are compared at a size whose longer side is at most this
SHORTEST = "0.3s"  # of a shot; PySceneDetect's 15 frames are a second at 16 fps
TICK = Fraction(1, 10**6)  # seconds


def detect_cuts(path: Path) -> tuple[float, ...]:
    """Return when each shot of a video but the first begins, in seconds after its first frame.

    Each is the time of a frame, on the clock of `iter_frames`. They are the cuts of PySceneDetect's
    adaptive detector, which passes over camera movement and slow transitions; a shot lasts 0.3 s
    or more.

    Raises:
        UserError: PySceneDetect cannot be loaded; the message names the extra.
        VideoError: the file cannot be opened as video, or its pixels cannot be read.
    """
    detector = _Detector()
    with open_video(path) as video:
        for time, pixels in _small_pictures(path, video):
            detector.add(time, pixels)
    return detector.cuts()


def _small_pictures(path: Path, video: VideoStream) -> Iterator[tuple[float, Pixels]]:
    """Yield time and pixels [h, w, 3], blue first, of every frame, all of the first one's size."""
    reformatter: Any = VideoReformatter()
    size: tuple[int, int] | None = None
    for timed in video.frames():
        frame = timed.frame
        size = size or _small_size(frame.width, frame.height)
        try:
            small = reformatter.reformat(frame, width=size[0], height=size[1], format="bgr24")
            pixels = small.to_ndarray()
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError(path, "its pixels cannot be made RGB") from error
        yield timed.time, pixels


def _small_size(width: int, height: int) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _load_times() -> Any:
    """Return PySceneDetect's module of times, once all that is needed of it is loaded."""
    try:
        import_module("scenedetect.detectors")
        times = import_module("scenedetect.common")
        times.Timecode  # noqa: B018  # absent before 0.7
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"cuts are found by PySceneDetect 0.7 or newer, which cannot be loaded ({error}): "
            'pip install "longtake[cuts]"'
        ) from None
    return times


def _load_adaptive() -> Any:
    return import_module("scenedetect.detectors").AdaptiveDetector(min_scene_len=SHORTEST)


@define
class _Detector:
    """Feeds frames to PySceneDetect, and turns its timecodes back into the times of the frames."""

    library: Any = field(factory=_load_times)
    adaptive: Any = field(factory=_load_adaptive)
    times: dict[int, float] = field(factory=dict)  # by the ticks that the detector counts
    timecodes: list[Any] = field(factory=list)  # of the cuts
    last: Any = None

    def add(self, time: float, pixels: Pixels) -> None:
        tick = round(time / TICK)
        if tick in self.times:  # two frames of one moment: only the first counts
            return
        self.times[tick] = time
        # The rate only stands in where a timecode has no ticks; these have.
        moment = self.library.Timecode(pts=tick, time_base=TICK)
        self.last = self.library.FrameTimecode(moment, fps=Fraction(25))
        self.timecodes += self.adaptive.process_frame(self.last, pixels)

    def cuts(self) -> tuple[float, ...]:
        if self.last is not None:
            self.timecodes += self.adaptive.post_process(self.last)
        return tuple(sorted(self.times[cut.pts] for cut in self.timecodes))
