"""Read lists of videos and captions: CSV and JSON of DiffSynth, JSONL of musubi-tuner, FastVideo's.

The keys that these and their neighbours use mean the same in all three kinds of file.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from attrs import frozen

from ..errors import UserError, printable
from .captions import Caption, untimed_captions
from .subtitles import SEGMENTS, parse_json, parse_segments, read_text_file

VIDEO = ("video", "video_path", "path", "file_path", "file_name")
CAPTION = ("caption", "prompt", "cap", "text", SEGMENTS)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
EXAMPLE = '{"video": "a.mp4", "prompt": "..."}'


@frozen
class Row:
    """A video that a list names, as written; `where` is its place in the list."""

    video: str
    captions: tuple[Caption, ...]
    where: str


def read_rows(path: Path) -> list[Row]:
    """Read a list of videos as its suffix (`SUFFIXES`) says.

    Further columns and keys are allowed; blank lines are passed over. Of several captions of one
    video (FastVideo's `cap`), the first counts.

    Raises:
        UserError: the file is no such list, or a row lacks its video or its caption (which may be
            blank); with file and row or line.
    """
    name, text = printable(path.name), read_text_file(path)
    kinds = {".jsonl": _lines, ".json": _list, ".csv": _table, ".tsv": _table}
    rows = list(kinds[path.suffix.lower()](text, name))
    if not rows:
        raise UserError(f"{name}: lists no video")
    return rows


def _lines(text: str, name: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _row(parse_json(line, name, number), f"{name}, line {number}")


def _list(text: str, name: str) -> Iterator[Row]:
    data = parse_json(text, name)
    if isinstance(data, dict) and SEGMENTS in data and not any(key in data for key in VIDEO):
        raise UserError(f"{name}: holds timed captions of one video; give the video instead")
    if not isinstance(data, list):
        raise UserError(f"{name}: is no list of videos such as [{EXAMPLE}]")
    for number, entry in enumerate(data, start=1):
        yield _row(entry, f"{name}, entry {number}")


def _table(text: str, name: str) -> Iterator[Row]:
    reader = csv.reader(
        io.StringIO(text), delimiter=_delimiter(text), strict=True, skipinitialspace=True
    )
    try:
        header = [column.strip() for column in next(reader, [])]
        _check_header(header, name)
        for fields in reader:
            if any(field.strip() for field in fields):
                where = f"{name}, line {reader.line_num}"
                yield _row(_fields(header, fields, where), where)
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}: no CSV: {error}") from None


def _delimiter(text: str) -> str:
    """Return what separates the columns of the first line: a tab, a semicolon or a comma."""
    first = text.lstrip("\n").partition("\n")[0]
    return next((mark for mark in "\t;" if mark in first and "," not in first), ",")


def _check_header(header: list[str], name: str) -> None:
    if not any(key in header for key in (*VIDEO, *CAPTION)):
        columns = ", ".join(header)[:80] or "nothing"
        raise UserError(
            f"{name}, line 1: {columns}: no names of columns; "
            f"{_misspelling(header, (*VIDEO, *CAPTION))}"
            "the first line should hold them, as in `video,prompt`"
        )
    for keys, what in ((VIDEO, "path of a video"), (CAPTION, "caption")):
        _value(dict.fromkeys(header), keys, what, f"{name}, line 1")


def _fields(header: list[str], fields: list[str], where: str) -> Mapping[str, str]:
    if len(fields) != len(header):
        raise UserError(
            f"{where}: {len(fields)} fields, but {len(header)} columns ({', '.join(header)}); "
            'a caption with commas stands in "quotes"'
        )
    return dict(zip(header, fields, strict=True))


def _row(entry: Any, where: str) -> Row:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: is no object such as {EXAMPLE}")
    video = _value(entry, VIDEO, "path of a video", where)
    if not isinstance(video, str) or not video.strip():
        raise UserError(f"{where}: the video's path is {_short(video)}; it should be text")
    try:
        os.fsencode(video)
    except UnicodeEncodeError:
        raise UserError(f"{where}: {_short(video)} can be no file's name") from None
    if "\0" in video:
        raise UserError(f"{where}: {_short(video)} can be no file's name")
    return Row(video.strip(), _captions(entry, where), where)


def _captions(entry: Mapping[str, Any], where: str) -> tuple[Caption, ...]:
    if SEGMENTS in entry:
        return parse_segments(entry[SEGMENTS], where)
    caption = _value(entry, CAPTION, "caption", where)
    texts = caption if isinstance(caption, list) else [caption or ""]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: the caption is {_short(caption)}; it should be text")
    return next((untimed_captions(text) for text in texts if text.strip()), ())


def _value(entry: Mapping[str, Any], keys: tuple[str, ...], what: str, where: str) -> Any:
    """Return the value of the first of `keys` that an entry has; `what` it is, for the message."""
    key = next((key for key in keys if key in entry), None)
    if key is not None:
        return entry[key]
    present = f"found {', '.join(map(str, entry))[:80]}" if entry else "it is empty"
    raise UserError(
        f"{where}: has no {what} ({present}); {_misspelling(entry, keys)}"
        f"call it one of {', '.join(keys)}"
    )


def _misspelling(present: Collection[str], keys: tuple[str, ...]) -> str:
    """Return a question about a key that may be misspelt, "" where none looks so."""
    for key in present:
        similar = get_close_matches(str(key).lower(), keys, 1, 0.7)
        if similar:
            return f"is {key} meant to be {similar[0]}? "
    return ""


def _short(value: Any) -> str:
    return ascii(value)[:60]
