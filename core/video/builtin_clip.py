"""Make the built-in clip: photographs under a moving camera, with cuts back to earlier views.

The returns are the point: a memory is what makes the second visit look like the first. Everything
is computed from photographs inside scikit-image's wheel, without network, the same on every run.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from attrs import frozen
from PIL import Image

from ..errors import UserError
from .camera import Framing, Shot, film
from .decode import Pixels
from .write import write_video

SECONDS = 20.0  # that SHOTS are timed for; a clip of another length stretches them


@frozen
class Credit:
    """Who took a photograph, and under which licence scikit-image's docstrings say it stands."""

    photo: str
    title: str
    author: str
    licence: str


CREDITS = (
    Credit("astronaut.png", "Astronaut Eileen Collins", "NASA", "public domain"),
    Credit("chelsea.png", "Chelsea the cat", "Stefan van der Walt", "CC0"),
    Credit("coffee.png", "Cup of coffee, Pikolo Espresso Bar", "Rachel Michetti", "CC0"),
    Credit("rocket.jpg", "Launch of DSCOVR on Falcon 9", "SpaceX", "public domain"),
    Credit("camera.png", "Photographer", "Lav Varshney", "CC0"),
)


_FACE, _SHUTTLE = Framing(0.45, 0.15, 1.5), Framing(0.85, 0.45, 1.5)
_CAT, _EYES = Framing(0.5, 0.5, 1.05), Framing(0.42, 0.3, 1.7)
_CUP, _SPOON = Framing(0.55, 0.35, 1.6), Framing(0.15, 0.8, 1.6)
_PAD, _FLAME = Framing(0.5, 0.9, 1.0), Framing(0.5, 0.7, 1.8)
_MAN, _CAMERA = Framing(0.3, 0.3, 1.1), Framing(0.45, 0.25, 1.8)

SHOTS = (
    Shot("astronaut.png", 0.0, 2.5, "pan right and down", _FACE, _SHUTTLE),
    Shot("chelsea.png", 2.5, 5.0, "zoom in", _CAT, _EYES),
    Shot("astronaut.png", 5.0, 6.5, "pan back left and up", _SHUTTLE, _FACE),
    Shot("coffee.png", 6.5, 9.0, "pan left and down", _CUP, _SPOON),
    Shot("chelsea.png", 9.0, 10.5, "zoom out", _EYES, _CAT),
    Shot("rocket.jpg", 10.5, 12.5, "zoom in", _PAD, _FLAME),
    Shot("astronaut.png", 12.5, 14.0, "zoom in", _FACE, Framing(0.45, 0.15, 2.0)),
    Shot("camera.png", 14.0, 16.0, "zoom in", _MAN, _CAMERA),
    Shot("coffee.png", 16.0, 18.0, "pan back right and up", _SPOON, _CUP),
    Shot("rocket.jpg", 18.0, 20.0, "zoom out", _FLAME, _PAD),
)


def builtin_clip(
    seconds: float = SECONDS, fps: float = 24, height: int = 288, width: int = 512
) -> Iterator[Pixels]:
    """Yield the clip's frames, uint8 RGB [height, width, 3]: ⌊seconds · fps⌋ of them.

    The picture depends on the moment alone, so that the same second looks the same at any `fps`.

    Raises:
        UserError: an argument is not positive, or scikit-image lacks a photograph.
    """
    if min(seconds, fps, height, width) <= 0:
        raise UserError(f"a clip of {seconds} s, {fps} fps and {width}x{height} cannot be made")
    return render_shots(shots(seconds), seconds, fps, (width, height))


def shots(seconds: float = SECONDS) -> tuple[Shot, ...]:
    """Return the shots of a clip that is `seconds` long."""
    rate = seconds / SECONDS
    return tuple(
        Shot(s.photo, s.start * rate, s.end * rate, s.move, s.first, s.last) for s in SHOTS
    )


def render_shots(
    script: tuple[Shot, ...], seconds: float, fps: float, size: tuple[int, int]
) -> Iterator[Pixels]:
    """Yield the frames of some shots over scikit-image's photographs, ⌊seconds · fps⌋ of them.

    Args:
        script: the shots, by their start; the last one lasts to the end.
        seconds: the length of the clip.
        fps: frames a second.
        size: width and height of a frame.

    Raises:
        UserError: scikit-image lacks a photograph; said before the first frame is asked for.
    """
    photos = {photo: open_credited(photo) for photo in dict.fromkeys(shot.photo for shot in script)}
    return film(script, photos, seconds, fps, size)


def open_credited(name: str) -> Image.Image:
    """Read one of scikit-image's photographs as RGB.

    Raises:
        UserError: scikit-image lacks it.
    """
    file = resources.files("skimage") / "data" / name
    if not file.is_file():
        raise UserError(f"scikit-image's photograph {name} is missing; install scikit-image again")
    with file.open("rb") as stream:
        return Image.open(stream).convert("RGB")


def write_builtin_clip(
    path: Path, seconds: float = SECONDS, fps: float = 24, height: int = 288, width: int = 512
) -> None:
    """Write the clip as an H.264 mp4 at `path`, whole or not at all.

    Raises:
        UserError: as `builtin_clip`, or the disk refuses.
    """
    write_video(path, builtin_clip(seconds, fps, height, width), fps)
