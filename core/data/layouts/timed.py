"""Timed captions in JSON: `{"segments": [{"time_range_s": [0, 4], "prompt": "..."}]}`."""

from __future__ import annotations

import math
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..captions import Caption
from ..names import printable
from .text import parse_json, read_text

SEGMENTS = "segments"
RANGE = "time_range_s"
TEXTS = ("prompt", "caption", "text")


def read_timed(path: Path) -> tuple[Caption, ...]:
    """Give the timed captions of a JSON file; none where it holds something else.

    Settings and other metadata are often kept in a JSON beside a video: an object without
    `segments` is passed over.

    Raises:
        UserError: it is no JSON, `segments` seems misspelt, or a segment is wrong.
    """
    name, text = printable(path.name), read_text(path)
    found = parse_json(text, name) if text.strip() else {}
    if not isinstance(found, dict):
        return ()
    if SEGMENTS in found:
        return timed_captions(found[SEGMENTS], name)
    like = get_close_matches(SEGMENTS, map(str.lower, found), 1, 0.8)
    if like:
        raise UserError(f"{name}: {like[0]} is unknown; timed captions stand in `segments`")
    return ()


def timed_captions(segments: Any, where: str) -> tuple[Caption, ...]:
    """Give the captions of a list of segments, by their start.

    Raises:
        UserError: a segment has no text, or no [start, end] in seconds; named with its number.
    """
    if not isinstance(segments, list):
        raise UserError(f"{where}: segments is no list of {_example()}")
    found = [_segment(s, f"{where}, segment {n}") for n, s in enumerate(segments, start=1)]
    return tuple(sorted(found, key=lambda caption: caption.start))


def _example() -> str:
    return '{"time_range_s": [0, 4], "prompt": "..."}'


def _segment(segment: Any, where: str) -> Caption:
    if not isinstance(segment, dict) or RANGE not in segment:
        raise UserError(f"{where}: no {RANGE}; it should be like {_example()}")
    texts = [segment[key] for key in TEXTS if key in segment]
    if not texts or not isinstance(texts[0], str) or not texts[0].strip():
        raise UserError(f"{where}: no prompt; it should be like {_example()}")
    start, end = _range(segment[RANGE], where)
    return Caption(start=start, end=end, text=texts[0].strip())


def _range(found: Any, where: str) -> tuple[float, float | None]:
    wrong = UserError(
        f"{where}: {RANGE} is {_short(found)}; it should be [start, end] in seconds, "
        "0 ≤ start < end, or [start, null] to the end"
    )
    if not isinstance(found, list) or len(found) != 2:
        raise wrong
    start, end = found
    if not _is_second(start) or not (end is None or _is_second(end)):
        raise wrong
    if end is not None and end <= start:
        raise wrong
    return float(start), None if end is None else float(end)


def _is_second(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value < 1e9 and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
