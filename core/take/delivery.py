"""take.mp4 and new.mp4: the clips of a take, joined without encoding again and counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import LongtakeError, UserError
from ..tools.files import disk_errors
from ..video.write import count_frames, join_videos, write_video
from .base import TakeBase
from .folder import safe_disk
from .past import CRF, STANDS_IN, Link, Past, stands_in

VIDEO, NEW_VIDEO = "take.mp4", "new.mp4"


def deliver(take: TakeBase, past: Past, path: Path | None = None) -> tuple[Path, ...]:
    """Join the clips to take.mp4 (or `path`) and, behind a source, new.mp4; return the files.

    A new.mp4 of what is no longer there is removed.

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
    comment = video_comment(take, past.links)
    with safe_disk(len(past.links)):
        rest = _rest_clip(take, past, source)
        clips = [past.clip(i) for i in range(len(past.links))] + rest
        frames = take.frames_of(0, past.end)
        sound = None
        if (file := take.sound()) is not None:
            sound = file, take.frames_of(0, source) / take.folder.fps
        title = take.order.title
        files = [_joined(path or take.root / VIDEO, clips, comment, frames, title, sound)]
        new = [past.clip(i) for i, link in enumerate(past.links) if not link.source]
        if source and new:
            frames = take.stride * (past.end - source)
            files.append(_joined(take.root / NEW_VIDEO, new + rest, comment, frames, title))
    if not (source and new):
        remove_products(take, NEW_VIDEO)
    return tuple(files)


def remove_products(take: TakeBase, *names: str) -> None:
    """Remove videos and reports of what the take no longer holds.

    Raises:
        UserError: the disk refuses.
    """
    for name in names:
        with disk_errors(take.root / name):
            (take.root / name).unlink(missing_ok=True)


def video_comment(take: TakeBase, links: Sequence[Link]) -> str:
    """Return the comment in a video's metadata: of which segments it is, and how of a source."""
    source = take.source()
    recoded = ", recoded" if source is not None and source.recode else ""
    gone = f", {STANDS_IN}" if stands_in(take.folder, links) else ""
    sound = ", with sound" if take.sound() is not None else ""
    return f"longtake take of {links[-1].chain[:32]}{recoded}{gone}{sound}"


def _joined(
    path: Path,
    clips: list[Path],
    comment: str,
    expected: int,
    title: str,
    sound: tuple[Path, float] | None = None,
) -> Path:
    if count_frames(path, comment, title) != expected:
        track, end = sound or (None, None)
        frames = join_videos(path, clips, comment, track, end, title)
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
