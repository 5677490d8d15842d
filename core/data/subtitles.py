"""Read timed captions: SubRip (.srt), WebVTT (.vtt) and segments in JSON.

Segments are `{"segments": [{"time_range_s": [0, 4], "prompt": "..."}]}`. Users bring these files,
so everything that is wrong with one is a single line that says what and where.
"""

from __future__ import annotations

import codecs
import html
import json
import math
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import define, frozen

from ..errors import UserError, printable
from .captions import Caption

BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

CLOCK = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d{1,9})?)"
TIMING = re.compile(rf"\s*{CLOCK}\s*-->\s*{CLOCK}(?:\s.*)?")
TAGS = re.compile(r"</?[A-Za-z][^<>\n]*>|<[\d:.]+>|\{\\[^{}\n]*\}")
BLOCKS = ("NOTE", "STYLE", "REGION")

SEGMENTS = "segments"
RANGE = "time_range_s"
TEXTS = ("prompt", "caption", "text")
EXAMPLE = '{"time_range_s": [0, 4], "prompt": "..."}'


@frozen(kw_only=True)
class Cue:
    """One cue of an .srt or .vtt file.

    Attributes:
        number: its place among the cues of the file, from 1.
        line: of the file where its times stand.
        start: seconds; where it begins.
        end: seconds; start or later.
        text: without tags, on one line; "" where it is blank.
    """

    number: int
    line: int
    start: float
    end: float
    text: str


def read_subtitles(path: Path, passed: list[str] | None = None) -> tuple[Caption, ...]:
    """Read the cues of an .srt or .vtt file, by their start, without tags and blank ones.

    A cue of no length is passed over, and named in a line that is added to `passed`.

    Raises:
        UserError: text without a time, a time that is none, or a cue that ends before it starts;
            a .vtt file that does not begin with WEBVTT. With file and line.
    """
    name, captions = printable(path.name), []
    for cue in parse_cues(read_text_file(path), name, web=path.suffix.lower() == ".vtt"):
        if cue.start == cue.end:
            if passed is not None:
                passed.append(f"{name}, line {cue.line}: a cue of no length, passed over")
        elif cue.text:
            captions.append(Caption(start=cue.start, end=cue.end, text=cue.text))
    return tuple(sorted(captions, key=lambda caption: caption.start))


def parse_cues(
    text: str, name: str, *, web: bool, faults: list[UserError] | None = None
) -> Iterator[Cue]:
    """Yield all cues of a SubRip or WebVTT text, in its order, blank ones, too.

    Args:
        text: with newlines as line ends.
        name: of its file, for messages.
        web: whether it is WebVTT, which begins with WEBVTT and may hold other blocks.
        faults: where given, a cue that cannot be read is added as an error, and reading goes on
            behind the next blank line.

    Raises:
        UserError: as `read_subtitles`, where `faults` are not asked for.
    """
    lines = LineReader(name, text.split("\n"))
    if web and any(map(str.strip, lines.all)):
        _skip_header(lines)
    number = 0
    while _next_block(lines, web):
        number += 1
        try:
            yield _cue(lines, web, number)
        except UserError as error:
            if faults is None:
                raise
            faults.append(error)
            _skip_block(lines)


@define
class LineReader:
    """Takes the lines of a file one by one; `at` is the index of the next one."""

    name: str
    all: list[str]
    at: int = 0

    @property
    def now(self) -> str:
        """The next line, "" after the last."""
        return self.all[self.at] if self.at < len(self.all) else ""

    @property
    def after(self) -> str:
        """The line after the next, "" after the last."""
        return self.all[self.at + 1] if self.at + 1 < len(self.all) else ""

    def paragraph(self) -> Iterator[str]:
        """Take the lines up to a blank one, or up to the next cue where the blank is missing."""
        while self.now.strip() and not self._begins():
            yield self.now
            self.at += 1

    def _begins(self) -> bool:
        return "-->" in self.now or (self.now.strip().isdigit() and "-->" in self.after)

    def wrong(self, reason: str, back: int = 0) -> UserError:
        """Return the error of the next line, or of one `back` lines before it."""
        return UserError(f"{self.name}, line {self.at + 1 - back}: {reason}")


def _skip_header(lines: LineReader) -> None:
    if lines.now.split()[:1] != ["WEBVTT"]:
        raise lines.wrong("WebVTT begins with the line WEBVTT")
    for _ in lines.paragraph():
        pass


def _next_block(lines: LineReader, web: bool) -> bool:
    """Go to the next block that should be a cue; return whether there is one."""
    while lines.at < len(lines.all):
        if not lines.now.strip():
            lines.at += 1
        elif web and lines.now.split()[0] in BLOCKS:
            _skip_block(lines)
        else:
            return True
    return False


def _skip_block(lines: LineReader) -> None:
    """Pass over a comment or a style sheet, which may hold anything but a blank line."""
    while lines.now.strip():
        lines.at += 1


def _cue(lines: LineReader, web: bool, number: int) -> Cue:
    if "-->" not in lines.now and "-->" in lines.after:
        lines.at += 1  # the cue's number or name
    start, end = _times(lines)
    line = lines.at = lines.at + 1
    text = TAGS.sub("", " ".join(part.strip() for part in lines.paragraph()))
    text = " ".join((html.unescape(text) if web else text).split())
    return Cue(number=number, line=line, start=start, end=end, text=text)


def _times(lines: LineReader) -> tuple[float, float]:
    example = "00:00:01,000 --> 00:00:04,000"
    if "-->" not in lines.now:
        raise lines.wrong(f"text without a time before it; a cue begins like {example}")
    match = TIMING.fullmatch(lines.now)
    if not match:
        raise lines.wrong(f"no time that can be read; it should be like {example}")
    start, end = _seconds(*match.groups()[:3]), _seconds(*match.groups()[3:])
    if end < start:
        raise lines.wrong("the cue ends before it starts")
    return start, end


def _seconds(hours: str | None, minutes: str, seconds: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))


def read_segments(path: Path, passed: list[str] | None = None) -> tuple[Caption, ...]:
    """Read the timed captions of a JSON file; none where it holds something else.

    Settings and other metadata are often kept in a JSON beside a video: an object without
    `segments` is passed over. `passed` is that of `parse_segments`.

    Raises:
        UserError: it is no JSON, `segments` seems misspelt, or a segment is wrong.
    """
    name, text = printable(path.name), read_text_file(path)
    data = parse_json(text, name) if text.strip() else {}
    if not isinstance(data, dict):
        return ()
    if SEGMENTS in data:
        return parse_segments(data[SEGMENTS], name, passed)
    similar = get_close_matches(SEGMENTS, map(str.lower, data), 1, 0.8)
    if similar:
        raise UserError(f"{name}: {similar[0]} is unknown; timed captions stand in `segments`")
    return ()


def parse_segments(
    segments: Any, where: str, passed: list[str] | None = None
) -> tuple[Caption, ...]:
    """Return the captions of a list of segments (`EXAMPLE`), by their start.

    A segment of no length is passed over, and named in a line that is added to `passed`.

    Raises:
        UserError: a segment has no text, or no [start, end] in seconds; named with its number.
    """
    if not isinstance(segments, list):
        raise UserError(f"{where}: segments is no list of {EXAMPLE}")
    captions = []
    for number, segment in enumerate(segments, start=1):
        place = f"{where}, segment {number}"
        caption = _segment(segment, place)
        if caption.start != caption.end:
            captions.append(caption)
        elif passed is not None:
            passed.append(f"{place}: of no length, passed over")
    return tuple(sorted(captions, key=lambda caption: caption.start))


def _segment(segment: Any, where: str) -> Caption:
    if not isinstance(segment, dict) or RANGE not in segment:
        raise UserError(f"{where}: no {RANGE}; it should be like {EXAMPLE}")
    texts = [segment[key] for key in TEXTS if key in segment]
    if not texts or not isinstance(texts[0], str) or not texts[0].strip():
        raise UserError(f"{where}: no prompt; it should be like {EXAMPLE}")
    start, end = _range(segment[RANGE], where)
    return Caption(start=start, end=end, text=texts[0].strip())


def _range(value: Any, where: str) -> tuple[float, float | None]:
    wrong = UserError(
        f"{where}: {RANGE} is {_short(value)}; it should be [start, end] in seconds, "
        "0 ≤ start < end, or [start, null] to the end"
    )
    if not isinstance(value, list) or len(value) != 2:
        raise wrong
    start, end = value
    if not _is_second(start) or not (end is None or _is_second(end)):
        raise wrong
    if end is not None and end < start:
        raise wrong
    return float(start), None if end is None else float(end)


def _is_second(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value < 1e9 and math.isfinite(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def read_text_file(path: Path) -> str:
    """Read a text file in UTF-8 (or UTF-16 with its mark), with all line ends as newlines.

    Raises:
        UserError: it cannot be read, is not text, or is in another encoding; with file and line.
    """
    return decode_text(read_whole_file(path), printable(path.name))


def read_whole_file(path: Path) -> bytes:
    """Return what a file holds.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{printable(path.name)}: cannot be read ({error.strerror})") from None


def decode_text(data: bytes, name: str) -> str:
    """Return the text that a file holds, as `read_text_file`; `name` is for messages.

    Raises:
        UserError: it is not text, or in another encoding.
    """
    coding = next((BOMS[mark] for mark in BOMS if data.startswith(mark)), "utf-8")
    if coding != "utf-16" and b"\0" in data:
        raise UserError(f"{name}: is binary data, not text")
    try:
        text = data.decode(coding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        fault = f"byte 0x{data[error.start]:02x} is not {coding.upper().removesuffix('-SIG')}"
        raise UserError(f"{name}, line {line}: {fault}; save the file as UTF-8") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str, name: str, first: int = 1) -> Any:
    """Return the value that a JSON text holds.

    Args:
        text: the JSON.
        name: of its file, for messages.
        first: number of the text's first line in that file.

    Raises:
        UserError: it is no JSON, is nested beyond all use, or holds half a character; with its
            line.
    """
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = f"{name}, line {first + error.lineno - 1}, column {error.colno}"
        raise UserError(f"{where}: no JSON: {error.msg}") from None
    except UnicodeEncodeError:
        raise UserError(f"{name}: holds half a character (a lone \\ud800 ... escape)") from None
    except (RecursionError, ValueError):
        raise UserError(f"{name}, line {first}: no JSON that can be read") from None
    return value
