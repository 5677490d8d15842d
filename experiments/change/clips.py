"""Clips in which a thing is seen in one state, then in another, and out of view before it is asked.

A thing is a picture that lies on a photograph, where the camera looks. It changes while it is seen
(`watched`) or while the camera is elsewhere (`behind`); it becomes another one (`swap`), appears
(`comes`) or disappears (`goes`). Then the camera goes where neither is, and comes back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from ...core.data.films import open_photo
from ...core.data.sources import PHOTOS as SUFFIXES
from ...core.errors import UserError
from ...core.tools.files import read_json, write_json
from ...core.video.builtin_clip import CREDITS, open_credited
from ...core.video.camera import Box, Framing, Shot, film, view_box
from ...core.video.decode import fingerprint
from ...core.video.write import write_video
from ..returns.clips import FPS, FRAMES, RETURN, SECONDS, SIZE, Times

WHEN = ("watched", "behind")
WHAT = ("swap", "comes", "goes")
TIMES = Times(leaves=RETURN - 0.5)
OLD, NEW = "old", "new"  # pictures of a script
NEAR, FAR = Framing(0.1, 0.3, 2.5), Framing(0.9, 0.7, 2.5)  # which share no pixel
LEAST = 64  # pixels of a photograph's side: of less the thing would have but a few
THING = (0.3, 0.2, 0.7, 0.8)  # left, top, right, bottom of the view that the thing covers
STATES = {"swap": (0, 1), "comes": (None, 0), "goes": (0, None)}  # things that are seen, old, new
# Seconds at which each state is seen from the view that is asked for, alone and standing still.
SEEN = {"watched": {OLD: (0.0, 2.3), NEW: (2.6, 4.4)}, "behind": {OLD: (0.0, 1.4), NEW: (4.1, 5.1)}}
WHAT_IT_IS = "plan of change clips"


def build_clips(folder: Path, photos: Path | None = None) -> tuple[Path, ...]:
    """Write the clips into a folder, six of each photograph; those that are there stay.

    They are named `<when>-<what>-<photograph>.mp4`.

    Args:
        folder: where to; what the clips are stands beside it.
        photos: a folder of photographs, three or more; None: those of the built-in clip.

    Raises:
        UserError: `photos` has too few, two of one name, one that cannot be read or is too small,
            or `folder` has clips of another plan or of other photographs.
    """
    found = _photographs(photos)
    _note_plan(folder, photos)
    clips = []
    for place, (name, photo) in enumerate(found):
        things = (found[(place + 1) % len(found)][1], found[(place + 2) % len(found)][1])
        for when in WHEN:
            for what in WHAT:
                path = folder / f"{when}-{what}-{name}.mp4"
                if not path.exists():
                    frames = film(script(when), states(photo, things, what), SECONDS, FPS, SIZE)
                    write_video(path, frames, FPS)
                clips.append(path)
    return tuple(clips)


def _photographs(photos: Path | None) -> list[tuple[str, Image.Image]]:
    if photos is None:
        return [(Path(c.photo).stem, open_credited(c.photo)) for c in CREDITS]
    if not photos.is_dir():
        raise UserError(f"--photos {photos}: no such folder")
    paths = _photo_paths(photos)
    if len(paths) < 3:
        raise UserError(f"--photos {photos}: three photographs or more are needed")
    first: dict[str, Path] = {}
    for path in paths:
        one = first.setdefault(path.stem, path)
        if one != path:
            raise UserError(
                f"--photos {photos}: {one.name} and {path.name} would share their clips"
            )
    found = [(path.stem, open_photo(path)) for path in paths]
    for path, (_, photo) in zip(paths, found, strict=True):
        if min(photo.size) < LEAST:
            raise UserError(
                f"--photos {photos}: {path.name} is {photo.width}×{photo.height} pixels, "
                f"{LEAST} or more a side are needed"
            )
    return found


def _photo_paths(photos: Path) -> list[Path]:
    return sorted(path for path in photos.iterdir() if path.suffix.lower() in SUFFIXES)


def _note_plan(folder: Path, photos: Path | None) -> None:
    """Write beside the folder what its clips are: other versions change at other times.

    Clips of the user's photographs are bound to their files: each shows several of them.
    """
    plan: dict[str, Any] = {
        "fps": FPS, "frames": FRAMES, "seen": SEEN, "thing": list(THING), "zoom": NEAR.zoom,
        "size": list(SIZE),
    }  # fmt: skip
    if photos is not None:
        plan["photos"] = {path.name: fingerprint(path) for path in _photo_paths(photos)}
    path = folder.with_suffix(".json")
    known = read_json(path, WHAT_IT_IS) if path.exists() else None
    if folder.exists() and known != json.loads(json.dumps(plan)):
        raise UserError(
            f"{folder} has clips of another version, or of other photographs: name another --out, "
            "or delete it"
        )
    write_json(path, plan)


def script(when: str) -> tuple[Shot, ...]:
    """Return the shots of a clip; both ways end alike: elsewhere, back, and the new state."""
    leaves = TIMES.leaves
    begin = (
        (
            Shot(OLD, 0.0, 2.5, "look", NEAR, NEAR),
            Shot(NEW, 2.5, 4.5, "look on", NEAR, NEAR),
            Shot(NEW, 4.5, 5.5, "pan away", NEAR, FAR),
            Shot(NEW, 5.5, leaves, "look elsewhere", FAR, FAR),
        )
        if when == "watched"
        else (
            Shot(OLD, 0.0, 1.5, "look", NEAR, NEAR),
            Shot(OLD, 1.5, 2.5, "pan away", NEAR, FAR),
            Shot(NEW, 2.5, 3.0, "look elsewhere", FAR, FAR),
            Shot(NEW, 3.0, 4.0, "pan back", FAR, NEAR),
            Shot(NEW, 4.0, 5.2, "look again", NEAR, NEAR),
            Shot(NEW, 5.2, 6.2, "pan away", NEAR, FAR),
            Shot(NEW, 6.2, leaves, "look elsewhere", FAR, FAR),
        )
    )
    return (
        *begin,
        Shot(NEW, leaves, RETURN, "pan back", FAR, NEAR),
        Shot(NEW, RETURN, SECONDS, "look again", NEAR, NEAR),
    )


def states(
    photo: Image.Image, things: tuple[Image.Image, Image.Image], what: str
) -> dict[str, Image.Image]:
    """Return a photograph with the thing in its old state, and with it in its new one."""
    (left, top, right, bottom), _ = view_box(NEAR, photo.size, SIZE)
    wide, high = right - left, bottom - top
    box = (
        round(left + THING[0] * wide), round(top + THING[1] * high),
        round(left + THING[2] * wide), round(top + THING[3] * high),
    )  # fmt: skip
    size = (box[2] - box[0], box[3] - box[1])

    def with_thing(number: int | None) -> Image.Image:
        if number is None:
            return photo
        whole = photo.copy()
        whole.paste(_fitted(things[number], size), box[:2])
        return whole

    old, new = STATES[what]
    return {OLD: with_thing(old), NEW: with_thing(new)}


def _fitted(photo: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the middle of a photograph, as large as a thing."""
    scale = min(photo.width / size[0], photo.height / size[1])
    wide, high = scale * size[0], scale * size[1]
    left, top = (photo.width - wide) / 2, (photo.height - high) / 2
    box: Box = (left, top, left + wide, top + high)
    return photo.resize(size, Image.Resampling.BICUBIC, box=box)


def region(height: int, width: int) -> tuple[slice, slice]:
    """Return rows and columns of a frame that the thing covers, a little less than all of them."""
    left, top, right, bottom = THING
    return (
        slice(round(top * height) + 1, round(bottom * height) - 1),
        slice(round(left * width) + 1, round(right * width) - 1),
    )
