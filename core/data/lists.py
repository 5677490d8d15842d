"""Lists of videos and captions: CSV and JSON of DiffSynth, JSONL of musubi-tuner, FastVideo's.

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
from .captions import Caption, whole
from .subtitles import SEGMENTS, parse_json, read_text, timed_captions

VIDEO = ("video", "video_path", "path", "file_path", "file_name")
CAPTION = ("caption", "prompt", "cap", "text", SEGMENTS)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")


@frozen
class Row:
    """A video that a list names, as written; `where` is its place in the list."""

    video: str
    captions: tuple[Caption, ...]
    where: str


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a list of videos, by the suffix of the file.

    Further columns and keys are allowed; blank lines are passed over. Of several captions of one
    video (FastVideo's `cap`), the first counts.

    Raises:
        UserError: the file is no such list, or a row lacks its video or its caption (which may be
            blank); with file and row or line.
    """
    name, text = printable(path.name), read_text(path)
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
    found = parse_json(text, name)
    if isinstance(found, dict) and SEGMENTS in found and not _has(found, VIDEO):
        raise UserError(f"{name}: holds timed captions of one video; give the video instead")
    if not isinstance(found, list):
        raise UserError(f"{name}: is no list of videos such as [{_example()}]")
    for number, entry in enumerate(found, start=1):
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
        found = ", ".join(header)[:80] or "nothing"
        raise UserError(
            f"{name}, line 1: {found}: no names of columns; {_like(header, (*VIDEO, *CAPTION))}"
            "the first line should hold them, as in `video,prompt`"
        )
    for keys, what in ((VIDEO, "path of a video"), (CAPTION, "caption")):
        _pick(dict.fromkeys(header), keys, what, f"{name}, line 1")


def _fields(header: list[str], fields: list[str], where: str) -> Mapping[str, str]:
    if len(fields) != len(header):
        raise UserError(
            f"{where}: {len(fields)} fields, but {len(header)} columns ({', '.join(header)}); "
            'a caption with commas stands in "quotes"'
        )
    return dict(zip(header, fields, strict=True))


def _example() -> str:
    return '{"video": "a.mp4", "prompt": "..."}'


def _row(entry: Any, where: str) -> Row:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: is no object such as {_example()}")
    video = _pick(entry, VIDEO, "path of a video", where)
    if not isinstance(video, str) or not video.strip():
        raise UserError(f"{where}: the video's path is {_shown(video)}; it should be text")
    try:
        os.fsencode(video)
    except UnicodeEncodeError:
        raise UserError(f"{where}: {_shown(video)} can be no file's name") from None
    if "\0" in video:
        raise UserError(f"{where}: {_shown(video)} can be no file's name")
    return Row(video.strip(), _captions(entry, where), where)


def _captions(entry: Mapping[str, Any], where: str) -> tuple[Caption, ...]:
    if SEGMENTS in entry:
        return timed_captions(entry[SEGMENTS], where)
    found = _pick(entry, CAPTION, "caption", where)
    texts = found if isinstance(found, list) else [found or ""]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: the caption is {_shown(found)}; it should be text")
    return next((whole(text) for text in texts if text.strip()), ())


def _pick(entry: Mapping[str, Any], keys: tuple[str, ...], what: str, where: str) -> Any:
    key = next((key for key in keys if key in entry), None)
    if key is not None:
        return entry[key]
    found = f"found {', '.join(map(str, entry))[:80]}" if entry else "it is empty"
    raise UserError(
        f"{where}: has no {what} ({found}); {_like(entry, keys)}call it one of {', '.join(keys)}"
    )


def _like(found: Collection[str], keys: tuple[str, ...]) -> str:
    """Return a question about a key that may be misspelt, "" where none looks so."""
    for key in found:
        like = get_close_matches(str(key).lower(), keys, 1, 0.7)
        if like:
            return f"is {key} meant to be {like[0]}? "
    return ""


def _has(entry: Mapping[str, Any], keys: tuple[str, ...]) -> bool:
    return any(key in entry for key in keys)


def _shown(value: Any) -> str:
    return ascii(value)[:60]
