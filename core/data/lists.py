"""Read lists of videos and captions: CSV and JSON of DiffSynth, JSONL of musubi-tuner, FastVideo's.

The keys that these and their neighbours use mean the same in all three kinds of file. Read are also
diffusion-pipe's `captions.json`, finetrainers' pair of text files, and the parts of videos that
Open-Sora Plan's lists name.
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

VIDEO = (
    "video", "video_path", "path", "file_path", "file_name",
    "media_path", "video_file", "filename", "filepath", "file",
)  # fmt: skip
WORDS = ("caption", "prompt", "cap", "text", "captions", "description")
CAPTION = (*WORDS, SEGMENTS)
DATA = (
    "data",
    "videos",
    "samples",
    "items",
    "annotations",
)  # what a list inside an object is called
SECONDS = (
    ("start", "end"), ("start_time", "end_time"), ("start_sec", "end_sec"), ("begin", "end"),
)  # fmt: skip
FRAMES = ("frame_idx", "frame_index")
CROPS = ("crop", "crop_box", "bbox")
SUFFIXES = (".csv", ".tsv", ".jsonl", ".json")
EXAMPLE = '{"video": "a.mp4", "prompt": "..."}'


@frozen
class Row:
    """A video that a list names, as written; `where` is its place in the list."""

    video: str
    captions: tuple[Caption, ...]
    where: str
    notes: tuple[str, ...] = ()  # what of it is not taken as one may think


def read_rows(path: Path) -> list[Row]:
    """Read a list of videos as its suffix (`SUFFIXES`) says.

    Further columns and keys are allowed; blank lines are passed over. Of several captions of one
    video (FastVideo's `cap`), the first counts. Where a row is about a part of its video (`start`
    and `end` in seconds, `frame_idx` beside `fps`), its caption holds for that part.

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
    if isinstance(data, dict):
        data = next((data[key] for key in DATA if isinstance(data.get(key), list)), data)
    if _is_by_name(data):
        data = [{VIDEO[0]: video, CAPTION[0]: caption} for video, caption in data.items()]
    if not isinstance(data, list):
        raise UserError(f"{name}: is no list of videos such as [{EXAMPLE}]")
    for number, entry in enumerate(data, start=1):
        yield _row(entry, f"{name}, entry {number}")


def _is_by_name(data: Any) -> bool:
    """Return whether an object holds captions by the file's name, as diffusion-pipe keeps them."""
    return (
        isinstance(data, dict)
        and bool(data)
        and all(Path(name).suffix and isinstance(said, (str, list)) for name, said in data.items())
    )


def read_pair(videos: Path, prompts: Path) -> list[Row]:
    """Read two text files of which line n names a video and says its caption (finetrainers).

    Raises:
        UserError: a file is no text, the numbers of lines differ, or no line is there.
    """
    names, texts = (_text_lines(path) for path in (videos, prompts))
    both = f"{printable(prompts.name)} and {printable(videos.name)}"
    if len(names) != len(texts):
        raise UserError(
            f"{both} have {len(texts)} and {len(names)} lines; line n belongs to line n"
        )
    rows = [
        Row(name.strip(), untimed_captions(text), f"{both}, line {number}")
        for number, (name, text) in enumerate(zip(names, texts, strict=True), start=1)
        if name.strip()
    ]
    if not rows:
        raise UserError(f"{printable(videos.name)}: lists no video")
    return rows


def _text_lines(path: Path) -> list[str]:
    return read_text_file(path).rstrip("\n").split("\n")


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
    for key in (*VIDEO, *CAPTION):
        if header.count(key) > 1:
            raise UserError(f"{name}, line 1: two columns are called {key}; keep one")
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
    notes: list[str] = []
    captions = _captions(entry, where, notes)
    return Row(video.strip(), captions, where, tuple(notes))


def _captions(entry: Mapping[str, Any], where: str, notes: list[str]) -> tuple[Caption, ...]:
    list_name = where.partition(",")[0]
    for key in CROPS:
        if entry.get(key):
            notes.append(f"{list_name}: {key} is not applied: whole frames are cached")
    if SEGMENTS in entry:
        return parse_segments(entry[SEGMENTS], where, notes)
    whole = _whole_captions(entry, where, notes)
    part, key = _part(entry)
    if not key:
        return whole
    if part is None:
        notes.append(f"{list_name}: {key} cannot be read as a time: captions hold for whole videos")
        return whole
    notes.append(f"{list_name}: {key} says when a caption holds; whole videos are cached")
    return tuple(Caption(start=part[0], end=part[1], text=caption.text) for caption in whole)


def _part(entry: Mapping[str, Any]) -> tuple[tuple[float, float] | None, str]:
    """Return from when to when an entry is about its video, and the keys that say so.

    "" where none does, None where what they say is no time.
    """
    for keys in SECONDS:
        values = [entry.get(key) for key in keys]
        if all(value not in (None, "") for value in values):
            return _span(values, 1.0), " and ".join(keys)
    for key in FRAMES:
        if entry.get(key) not in (None, "", []):
            value = entry[key]
            ends = value.split(":") if isinstance(value, str) else value
            span = None
            if isinstance(ends, list) and len(ends) == 2:
                span = _span(ends, _number(entry.get("fps")) or 0.0)
            return span, key if span else f"{key} (without fps)" if not entry.get("fps") else key
    return None, ""


def _span(values: list[Any], rate: float) -> tuple[float, float] | None:
    """Return two numbers of which `rate` make a second as seconds, None where they are no span."""
    first, last = map(_number, values)
    if first is None or last is None or not 0 <= first < last or rate <= 0:
        return None
    return first / rate, last / rate


def _number(value: Any) -> float | None:
    """Return a number, also one that is written as text or as a clock; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    total = 0.0
    try:
        for part in str(value).strip().split(":"):
            total = total * 60 + float(part)
    except ValueError:
        return None
    return total if 0 <= total < 1e9 else None


def _whole_captions(entry: Mapping[str, Any], where: str, notes: list[str]) -> tuple[Caption, ...]:
    """Return the caption of a row: of several columns that may hold it the first that says any."""
    said = [key for key in WORDS if isinstance(entry.get(key), str) and entry[key].strip()]
    others = [key for key in said[1:] if entry[key].strip() != entry[said[0]].strip()]
    if others:
        list_name = where.partition(",")[0]
        notes.append(f"{list_name}: {', '.join(others)} not used, {said[0]} is")
    caption = _value(entry, (*said[:1], *CAPTION), "caption", where)
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
