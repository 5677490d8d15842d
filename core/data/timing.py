"""When decoded frames are on screen, and which of them are shown at another frame rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from attrs import define, frozen

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
        """Give `frame` with its time; the calls follow the order of the frames."""
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
