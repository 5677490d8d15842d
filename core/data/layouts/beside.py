"""Captions in a file beside a video: `x.json`, `x.srt`, `x.vtt` or `x.txt` for `x.mp4`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import UserError
from ..captions import Caption, whole
from ..names import printable
from .subtitles import read_subtitles
from .text import read_text
from .timed import read_timed

TIMED: dict[str, Callable[[Path], tuple[Caption, ...]]] = {
    ".json": read_timed,
    ".srt": read_subtitles,
    ".vtt": read_subtitles,
}


def captions_beside(path: Path) -> tuple[Caption, ...]:
    """Give the captions beside a video, none where there are none.

    Timed captions (`x.json`, `x.srt`, `x.vtt`) go before those of the whole (`x.txt`); two timed
    files must say the same. A blank file says nothing.

    Raises:
        UserError: a file cannot be read as what it is, or two timed ones differ.
    """
    found = [(file, read(file)) for end, read in TIMED.items() if (file := _file(path, end))]
    timed = [(file, captions) for file, captions in found if captions]
    for file, captions in timed[1:]:
        if captions != timed[0][1]:
            names = f"{printable(timed[0][0].name)} and {printable(file.name)}"
            raise UserError(f"{names} caption {printable(path.name)} differently: keep one")
    if timed:
        return timed[0][1]
    text = _file(path, ".txt")
    return whole(read_text(text)) if text else ()


def _file(video: Path, suffix: str) -> Path | None:
    """Give the file beside `video` with that suffix, in small or capital letters."""
    for end in (suffix, suffix.upper()):
        beside = video.with_suffix(end)
        if beside != video and _is_file(beside):
            return beside
    return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long with this suffix; no such file can be there
        return False
