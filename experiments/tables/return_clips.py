"""Clips that leave a view and come back: built from photographs, and real ones run back."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from ...core.data.video import read_frames, write_video
from ...core.demo.clip import CREDITS, Shot, View, filmed
from ...core.errors import UserError

SECONDS, FPS = 10.0, 16.0
SIZE = (512, 288)  # width, height
NEAR, FAR = View(0.1, 0.3, 1.6), View(0.9, 0.7, 1.6)
KINDS = ("pan", "cut", "back")
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov")


def build_clips(folder: Path, real: Path | None = None) -> list[Path]:
    """Write the clips into a folder, named `<kind>-<what>.mp4`; those that are there stay.

    `pan`: the camera goes over a photograph and back. `cut`: it looks at another photograph in
    between. `back`: the first half of a real video, then the same frames in reverse.

    Args:
        folder: where to.
        real: a folder of videos to run back; None: none.

    Raises:
        UserError: `real` holds no video.
    """
    made = [_photo(folder, kind, place) for kind in KINDS[:2] for place in range(len(CREDITS))]
    if real is not None:
        videos = sorted(path for path in real.iterdir() if path.suffix.lower() in SUFFIXES)
        if not videos:
            raise UserError(f"{real} holds no video to run back")
        made += [_back(folder, path) for path in videos]
    return made


def _photo(folder: Path, kind: str, place: int) -> Path:
    photo = CREDITS[place].photo
    path = folder / f"{kind}-{Path(photo).stem}.mp4"
    other = CREDITS[(place + 1) % len(CREDITS)].photo
    script = _pan(photo) if kind == "pan" else _cut(photo, other)
    if not path.exists():
        write_video(path, filmed(script, SECONDS, FPS, SIZE), FPS)
    return path


def _pan(photo: str) -> tuple[Shot, ...]:
    return (
        Shot(photo, 0.0, 0.5 * SECONDS, "pan away", NEAR, FAR),
        Shot(photo, 0.5 * SECONDS, SECONDS, "pan back", FAR, NEAR),
    )


def _cut(photo: str, other: str) -> tuple[Shot, ...]:
    near = View(NEAR.across + 0.1, NEAR.down, NEAR.zoom)
    return (
        Shot(photo, 0.0, 0.4 * SECONDS, "look", NEAR, near),
        Shot(other, 0.4 * SECONDS, 0.8 * SECONDS, "look elsewhere", NEAR, FAR),
        Shot(photo, 0.8 * SECONDS, SECONDS, "look again", NEAR, near),
    )


def _back(folder: Path, video: Path) -> Path:
    path = folder / f"back-{video.stem}.mp4"
    if path.exists():
        return path
    frames = read_frames(video, fps=FPS, count=int(SECONDS * FPS / 2)).frames
    write_video(path, chain(frames, frames[::-1]), FPS)
    return path
