"""Which videos there are to cache, and their captions."""

from __future__ import annotations

import hashlib
from pathlib import Path

from attrs import frozen

from ..errors import UserError

SUFFIXES = frozenset(
    ".mp4 .mov .mkv .webm .avi .m4v .mpg .mpeg .ts .m2ts .wmv .flv .ogv .3gp .gif .mxf".split()
)


@frozen(kw_only=True)
class Source:
    """A video to cache: where it is, what it is called in the store, and its caption."""

    path: Path
    id: str
    name: str
    caption: str


def find_sources(videos: Path) -> list[Source]:
    """Give the videos of a folder (searched below, too) or the one file, by name.

    Hidden files are passed over. A caption is the text of `x.txt` beside `x.mp4`; where there is
    none, the file's name with its dashes as spaces.

    Raises:
        UserError: the path does not exist or no file below it has the suffix of a video.
    """
    if videos.is_file():
        return [_source(videos, videos.parent)]
    if not videos.is_dir():
        raise UserError(f"--videos {videos}: no such file or folder")
    found = [path for path in sorted(videos.rglob("*")) if _is_video(path, videos)]
    if not found:
        raise UserError(f"--videos {videos}: no video in it (looked for {', '.join(_some())} ...)")
    return [_source(path, videos) for path in found]


def _some() -> list[str]:
    return sorted(SUFFIXES)[:6]


def _is_video(path: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and not path.is_dir()


def _source(path: Path, root: Path) -> Source:
    name = path.relative_to(root).as_posix()
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in path.stem)[:80]
    return Source(path=path, id=f"{stem}-{digest}", name=name, caption=caption_of(path))


def caption_of(path: Path) -> str:
    """Give the caption of a video: the text of `x.txt` beside `x.mp4`, else the name in words."""
    beside = path.with_suffix(".txt")
    try:
        text = beside.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        text = ""
    return text or path.stem.replace("-", " ").replace("_", " ")
