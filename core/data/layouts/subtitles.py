"""SubRip (.srt) and WebVTT (.vtt): cues with the seconds that they stand for."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import define

from ...errors import UserError
from ..captions import Caption
from ..names import printable
from .text import read_text

CLOCK = r"(?:(\d{1,3}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d{1,9})?)"
TIMING = re.compile(rf"\s*{CLOCK}\s*-->\s*{CLOCK}(?:\s.*)?")
TAGS = re.compile(r"</?[A-Za-z][^<>\n]*>|<[\d:.]+>|\{\\[^{}\n]*\}")
BLOCKS = ("NOTE", "STYLE", "REGION")


@define
class Lines:
    """The lines of a file, with the number of the next one."""

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
        """Give the error of the next line, or of one `back` lines before it."""
        return UserError(f"{self.name}, line {self.at + 1 - back}: {reason}")


def read_subtitles(path: Path) -> tuple[Caption, ...]:
    """Give the cues of an .srt or .vtt file by their start, without tags and blank ones.

    Raises:
        UserError: text without a time, a time that is none, or a cue that ends before it starts;
            a .vtt file that does not begin with WEBVTT. With file and line.
    """
    lines = Lines(printable(path.name), read_text(path).split("\n"))
    web = path.suffix.lower() == ".vtt"
    if web and any(map(str.strip, lines.all)):
        _header(lines)
    return tuple(sorted(_cues(lines, web), key=lambda cue: cue.start))


def _header(lines: Lines) -> None:
    if lines.now.split()[:1] != ["WEBVTT"]:
        raise lines.wrong("WebVTT begins with the line WEBVTT")
    for _ in lines.paragraph():
        pass


def _cues(lines: Lines, web: bool) -> Iterator[Caption]:
    while lines.at < len(lines.all):
        if not lines.now.strip():
            lines.at += 1
        elif web and lines.now.split()[0] in BLOCKS:
            _skip(lines)
        else:
            yield from _cue(lines, web)


def _skip(lines: Lines) -> None:
    """Pass over a comment or a style sheet, which may hold anything but a blank line."""
    while lines.now.strip():
        lines.at += 1


def _cue(lines: Lines, web: bool) -> Iterator[Caption]:
    if "-->" not in lines.now and "-->" in lines.after:
        lines.at += 1  # the cue's number or name
    start, end = _times(lines)
    lines.at += 1
    text = TAGS.sub("", " ".join(line.strip() for line in lines.paragraph()))
    text = " ".join((html.unescape(text) if web else text).split())
    if text:
        yield Caption(start=start, end=end, text=text)


def _times(lines: Lines) -> tuple[float, float]:
    example = "00:00:01,000 --> 00:00:04,000"
    if "-->" not in lines.now:
        raise lines.wrong(f"text without a time before it; a cue begins like {example}")
    match = TIMING.fullmatch(lines.now)
    if not match:
        raise lines.wrong(f"no time that can be read; it should be like {example}")
    start, end = _seconds(*match.groups()[:3]), _seconds(*match.groups()[3:])
    if end <= start:
        raise lines.wrong("the cue ends before it starts")
    return start, end


def _seconds(hours: str | None, minutes: str, seconds: str) -> float:
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
