"""Find the videos to cache, and the captions that users keep for them.

Captions stand in a list of videos, or in a file beside a video: `x.json`, `x.srt`, `x.vtt` or
`x.txt` for `x.mp4`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from attrs import frozen

from ..errors import UserError, printable
from .captions import Caption, caption_at, name_in_words, untimed_captions
from .lists import SUFFIXES as LISTS
from .lists import Row, read_rows
from .subtitles import read_segments, read_subtitles, read_text_file

SUFFIXES = frozenset(
    ".mp4 .mov .mkv .webm .avi .m4v .mpg .mpeg .ts .m2ts .wmv .flv .ogv .3gp .gif .mxf".split()
)
# Lists that are looked for inside a folder, by the names that their makers give them.
LISTS_INSIDE = (
    "metadata.csv",
    "metadata.tsv",
    "metadata.jsonl",
    "metadata.json",
    "videos2caption.json",
)
TIMED: dict[str, Callable[[Path], tuple[Caption, ...]]] = {
    ".json": read_segments,
    ".srt": read_subtitles,
    ".vtt": read_subtitles,
}


@frozen(kw_only=True)
class Source:
    """A video to cache: where it is, what it is called in the store, and its captions.

    Attributes:
        path: may name a file that does not exist (a list may): reading it says so.
        id: names its clip; the same whether a folder or a list inside it was given.
        name: its path below the folder, as it can be printed.
        captions: none where none was given.
        fault: why its captions cannot be read, in one line; the video must not be used then.
    """

    path: Path
    id: str
    name: str
    captions: tuple[Caption, ...] = ()
    fault: str = ""


def find_sources(videos: Path) -> list[Source]:
    """Find the videos of a folder (searched below, too) or of a list, or the one file; by name.

    - A folder: every video below it that is not hidden, with the captions beside each
      (`captions_beside`). A list inside it under a usual name (`LISTS_INSIDE`) goes before: then
      the videos are those of the list.
    - A list (CSV, TSV, JSON, JSONL, see `read_rows`): paths are relative to the list's folder,
      else to `videos` in it, else to the working directory. Where a caption is blank, the files
      beside the video count. A video that is not there is returned nevertheless.
    - Anything else is one video.

    Raises:
        UserError: nothing is there, no video is in the folder, a folder cannot be read, two lists
            are in it, a list is faulty, or lists a video twice with other captions.
    """
    try:
        if videos.is_dir():
            return _folder(videos)
        if not videos.is_file():
            raise UserError(f"--videos {videos}: no such file or folder")
    except OSError as error:
        place = printable(os.fsdecode(error.filename or videos))
        raise UserError(f"--videos {place}: cannot be read ({error.strerror})") from None
    if videos.suffix.lower() in LISTS:
        return _listed(read_rows(videos), videos.parent)
    return [_source(videos, videos.parent)]


def _folder(root: Path) -> list[Source]:
    lists = [root / name for name in LISTS_INSIDE if (root / name).is_file()]
    if len(lists) > 1:
        names = " and ".join(path.name for path in lists)
        raise UserError(f"--videos {root}: {names} are both in it; name the one to use")
    if lists:
        return _listed(read_rows(lists[0]), root)
    paths = sorted(path for path in _walk(root) if path.suffix.lower() in SUFFIXES)
    if not paths:
        some = ", ".join(sorted(SUFFIXES)[:6])
        raise UserError(f"--videos {root}: no video in it (looked for {some} ...){_hint(root)}")
    return [_source(path, root) for path in paths]


def _hint(root: Path) -> str:
    """Return how to use a list in the folder that has another name, "" where there is none."""
    lists = sorted(path.name for path in root.iterdir() if path.suffix.lower() in LISTS)
    return f"; to use {printable(lists[0])}, name it" if lists else ""


def _walk(root: Path) -> Iterator[Path]:
    """Yield the files below a folder, through links to folders, each folder once, none hidden."""
    seen = set()

    def refuse(error: OSError) -> None:
        raise error

    for here, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith("."))
        if real not in seen:
            yield from (Path(here, file) for file in files if not file.startswith("."))
        seen.add(real)


def _listed(rows: Iterable[Row], root: Path) -> list[Source]:
    sources: dict[str, tuple[Row, Source]] = {}
    for row in rows:
        path = _located(row.video, root)
        source = _source(path, root, row)
        earlier, _ = sources.setdefault(os.path.realpath(path), (row, source))
        if earlier.captions != row.captions:
            raise UserError(
                f"{row.where}: {source.name} stands there with another caption than in "
                f"{earlier.where}; keep one"
            )
    return sorted((source for _, source in sources.values()), key=lambda source: source.name)


def _located(written: str, root: Path) -> Path:
    """Return where a listed video is: the first place that has it, else where it should be."""
    names = [written, written.replace("\\", "/")]
    folders = [root, root / "videos", Path()]
    paths = [folder / name for name in names for folder in folders]
    return next((path for path in paths if _exists(path)), paths[0])


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long, a folder that may not be entered
        return False


def _source(path: Path, root: Path, row: Row | None = None) -> Source:
    captions, fault = row.captions if row else (), ""
    try:
        captions = captions or captions_beside(path)
    except UserError as error:
        fault = str(error)
    name = _name(path, root)
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in path.stem)
    short = stem.encode()[:80].decode(errors="ignore")  # bytes: disks count a name's length in them
    return Source(
        path=path, id=f"{short}-{digest}", name=printable(name), captions=captions, fault=fault
    )


def _name(path: Path, root: Path) -> str:
    """Return a path below the root, as it is where it lies elsewhere; with slashes."""
    path, root = Path(os.path.normpath(path)), Path(os.path.normpath(root))
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def captions_beside(path: Path) -> tuple[Caption, ...]:
    """Read the captions beside a video; none where there are none.

    Timed captions (`x.json`, `x.srt`, `x.vtt`) go before those of the whole (`x.txt`); two timed
    files must say the same. A blank file says nothing.

    Raises:
        UserError: a file cannot be read as what it is, or two timed ones differ.
    """
    files = [(file, read(file)) for end, read in TIMED.items() if (file := _file(path, end))]
    timed = [(file, captions) for file, captions in files if captions]
    for file, captions in timed[1:]:
        if captions != timed[0][1]:
            names = f"{printable(timed[0][0].name)} and {printable(file.name)}"
            raise UserError(f"{names} caption {printable(path.name)} differently: keep one")
    if timed:
        return timed[0][1]
    text = _file(path, ".txt")
    return untimed_captions(read_text_file(text)) if text else ()


def _file(video: Path, suffix: str) -> Path | None:
    """Return the file beside `video` with that suffix, in small or capital letters."""
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


def caption_of(path: Path, start: float = 0.0, end: float = float("inf")) -> str:
    """Read the caption beside a video that covers most of [start, end) seconds.

    "" where there are captions, but none covers it; without captions, the video's name in words.

    Raises:
        UserError: the captions beside it cannot be read.
    """
    captions = captions_beside(path)
    return caption_at(captions, start, end) if captions else name_in_words(path)
