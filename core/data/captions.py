"""Captions of a video, each with the seconds that it is about."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from attrs import frozen

from ..errors import printable

INSTANT = 1e-6  # seconds; the length that a moment counts as


@frozen(kw_only=True)
class Caption:
    """What a part of a video shows: `text` from `start` to `end`, seconds of the video.

    `end` is None where it holds to the video's end.
    """

    start: float
    end: float | None
    text: str

    def covers(self, start: float, end: float) -> float:
        """Return how many seconds of [start, end) it is about; a moment counts as an instant."""
        last = float("inf") if self.end is None else self.end
        return max(0.0, min(last, max(end, start + INSTANT)) - max(self.start, start))


def untimed_captions(text: str) -> tuple[Caption, ...]:
    """Return a text as the one caption of a whole video; none where it is blank."""
    text = text.strip()
    return (Caption(start=0.0, end=None, text=text),) if text else ()


def caption_at(captions: Sequence[Caption], start: float, end: float) -> str:
    """Return the text of the caption that covers most of [start, end), "" where none does.

    Of two that cover as much, the first one listed counts.
    """
    best = max(captions, key=lambda caption: caption.covers(start, end), default=None)
    return best.text if best is not None and best.covers(start, end) > 0 else ""


def caption_nearest(captions: Sequence[Caption], start: float, end: float) -> str:
    """Return the text of the caption that covers most of [start, end), else of the nearest one.

    "" where there is no caption. Of two that are as near, the first one listed counts.
    """

    def nearness(caption: Caption) -> tuple[float, float]:
        last = float("inf") if caption.end is None else caption.end
        distance = max(0.0, caption.start - end, start - last)
        return caption.covers(start, end), -distance

    best = max(captions, key=nearness, default=None)
    return "" if best is None else best.text


def name_in_words(path: Path) -> str:
    """Return a file's name as words: without suffix, dashes and underscores as spaces."""
    return printable(path.stem).replace("-", " ").replace("_", " ")


def shot_captions(name_in_words: str, cuts: Sequence[float]) -> tuple[Caption, ...]:
    """Return captions for a video that has none: its name, and the shot where there are several.

    Args:
        name_in_words: what the video is called.
        cuts: seconds of its hard cuts, in any order.
    """
    starts = [0.0, *sorted({cut for cut in cuts if cut > 0})]
    if len(starts) == 1:
        return untimed_captions(name_in_words)
    return tuple(
        Caption(start=start, end=end, text=f"{name_in_words}, shot {number}")
        for number, (start, end) in enumerate(pairwise([*starts, None]), start=1)
        if start is not None
    )
