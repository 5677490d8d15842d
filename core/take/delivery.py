"""take.mp4 and new.mp4: the clips of a take, joined without encoding again and counted."""

from __future__ import annotations

from pathlib import Path

from ..data.subtitles import decode_text, read_whole_file
from ..errors import LongtakeError, UserError
from ..tools.files import disk_errors, whole_file
from ..video.write import count_frames, join_videos, write_video
from .base import TakeBase
from .folder import TakeFolder, safe_disk
from .past import CRF, Past
from .source import read_source, sound_of

VIDEO, NEW_VIDEO = "take.mp4", "new.mp4"
TITLE = "title.txt"  # of the storyboard that was given last


def deliver(take: TakeBase, past: Past, path: Path | None = None) -> tuple[Path, ...]:
    """Join the clips to take.mp4 (or `path`) and, behind a source, new.mp4; return the files.

    Args:
        take: whose they are.
        past: of it, with all its clips.
        path: another place for the first file.

    Raises:
        UserError: nothing is made yet, or the disk refuses.
        LongtakeError: the disk is full, or another number of frames came than the latents have.
    """
    if not past.links:
        raise UserError(f"{take.root} has no segment yet: nothing to deliver")
    source = sum(link.count for link in past.links if link.source)
    comment = video_comment(take, past.links[-1].chain)
    with safe_disk(len(past.links)):
        rest = _rest_clip(take, past, source)
        clips = [past.clip(i) for i in range(len(past.links))] + rest
        frames = take.frames_of(0, past.end)
        sound = sound_of(take.folder)
        title = read_title(take.folder)
        files = [_joined(path or take.root / VIDEO, clips, comment, frames, title, sound)]
        new = [past.clip(i) for i, link in enumerate(past.links) if not link.source]
        if source and new:
            frames = take.stride * (past.end - source)
            files.append(_joined(take.root / NEW_VIDEO, new + rest, comment, frames, title))
    return tuple(files)


def read_title(folder: TakeFolder) -> str:
    """Return the title of a take's videos; "" where it has none.

    Raises:
        UserError: its file cannot be read.
    """
    path = folder.root / TITLE
    return decode_text(read_whole_file(path), TITLE).strip() if path.exists() else ""


def write_title(folder: TakeFolder, title: str) -> None:
    """Keep the title of a take's videos; "": there is none.

    Raises:
        UserError: the disk refuses.
    """
    path = folder.root / TITLE
    if title == read_title(folder):
        return
    if not title:
        with disk_errors(path):
            path.unlink()
        return
    with whole_file(path) as part:
        part.write_text(title + "\n", encoding="utf-8")


def video_comment(take: TakeBase, chain: str) -> str:
    """Return the comment in a video's metadata: of which segments it is, and how of a source."""
    source = read_source(take.folder)
    recoded = ", recoded" if source is not None and source.recode else ""
    sound = ", with sound" if sound_of(take.folder) is not None else ""
    return f"longtake take of {chain[:32]}{recoded}{sound}"


def _joined(
    path: Path,
    clips: list[Path],
    comment: str,
    expected: int,
    title: str,
    sound: Path | None = None,
) -> Path:
    if count_frames(path, comment, title) != expected:
        frames = join_videos(path, clips, comment, sound, title)
        if frames != expected:
            raise LongtakeError(
                f"{path} has {frames} frames, its latents have {expected}: delivered is not "
                "snapped; remove cache/ and run the same command"
            )
    return path


def _rest_clip(take: TakeBase, past: Past, source: int) -> list[Path]:
    """Write the provisional frames behind the last clip, where the codec holds some back."""
    rest = past.rest()
    if rest is None:
        return []
    rest = rest.since(take.frames_of(0, source) if source else 0)
    if not rest.pixels.shape[2]:
        return []
    path = past.clip(len(past.links) - 1).with_name("rest.mp4")
    write_video(path, rest.pictures(), take.folder.fps, CRF, "provisional", repeatable=True)
    return [path]
