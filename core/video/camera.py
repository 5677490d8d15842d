"""A virtual camera over still pictures: shots that pan, zoom and turn, one after another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from attrs import frozen
from PIL import Image

from .decode import Pixels

INTERPOLATION = Image.Resampling.BICUBIC
EDGE = 2  # pixels repeated around a picture before it is turned, which reads that far outside
Box = tuple[float, float, float, float]  # left, top, right, bottom of a picture, in its pixels


@frozen
class Framing:
    """What the camera sees: how far it zooms in, where the picture then lies, how it is held."""

    across: float  # 0 left … 1 right
    down: float  # 0 top … 1 bottom
    zoom: float  # 1: the largest view of the frame's shape, so turned, that the picture holds
    turn: float = 0.0  # degrees, counter-clockwise

    def towards(self, other: Framing, part: float) -> Framing:
        """Return the framing at a part, 0 to 1, of the way to another."""
        return Framing(
            self.across + (other.across - self.across) * part,
            self.down + (other.down - self.down) * part,
            self.zoom + (other.zoom - self.zoom) * part,
            self.turn + (other.turn - self.turn) * part,
        )


@frozen
class Shot:
    """One shot: the camera eases over `photo` from `first` to `last` in `start` … `end` seconds."""

    photo: str
    start: float
    end: float
    move: str  # in words
    first: Framing
    last: Framing

    def framing(self, moment: float) -> Framing:
        """Return what is seen at `moment`, in seconds of the clip."""
        done = (moment - self.start) / (self.end - self.start)
        return self.first.towards(self.last, done * done * (3 - 2 * done))


def film(
    script: tuple[Shot, ...],
    photos: Mapping[str, Image.Image],
    seconds: float,
    fps: float,
    size: tuple[int, int],
) -> Iterator[Pixels]:
    """Yield the frames uint8 [height, width, 3] of some shots, ⌊seconds · fps⌋ of them.

    The picture depends on the moment alone, so that the same second looks the same at any `fps`.

    Args:
        script: the shots, by their start; the last one lasts to the end.
        photos: RGB pictures, by the names that shots have for them.
        seconds: the length of the clip.
        fps: frames a second.
        size: width and height of a frame.
    """
    for index in range(int(seconds * fps + 1e-6)):
        moment = index / fps
        shot = next(s for s in reversed(script) if s.start <= moment + 1e-6)
        yield look(photos[shot.photo], shot.framing(moment), size)


def look(photo: Image.Image, framing: Framing, size: tuple[int, int]) -> Pixels:
    """Return what the camera sees of a picture, uint8 [height, width, 3].

    Args:
        photo: an RGB picture.
        framing: where the camera looks.
        size: width and height of the view.
    """
    box, scale = view_box(framing, photo.size, size)
    if not framing.turn:
        return np.asarray(photo.resize(size, INTERPOLATION, box=box))
    # shrunk first, which averages; the turn then takes about one pixel for one
    wide, high = (box[2] - box[0]) / scale, (box[3] - box[1]) / scale
    around = math.ceil(wide), math.ceil(high)
    level = photo.resize(around, INTERPOLATION, box=box)
    edged = Image.fromarray(np.pad(np.asarray(level), ((EDGE, EDGE), (EDGE, EDGE), (0, 0)), "edge"))
    radians = math.radians(framing.turn)
    cos, sin = math.cos(radians), math.sin(radians)
    x, y = size[0] / 2, size[1] / 2
    across, down = around[0] / wide, around[1] / high  # pixels of the box to one of the view
    matrix = (
        across * cos, across * sin, edged.width / 2 - across * (cos * x + sin * y),
        -down * sin, down * cos, edged.height / 2 - down * (cos * y - sin * x),
    )  # fmt: skip
    return np.asarray(edged.transform(size, Image.Transform.AFFINE, matrix, INTERPOLATION))


def view_box(framing: Framing, photo: tuple[int, int], size: tuple[int, int]) -> tuple[Box, float]:
    """Return the upright box around what is seen of a picture, and its pixels to one of the view.

    It begins inside the picture: where a view as large as the picture would lie before its edge by
    rounding, it begins at the edge.

    Args:
        framing: where the camera looks.
        photo: width and height of the picture.
        size: of the view.
    """
    wide, high = upright_size(size, framing.turn)
    scale = min(photo[0] / wide, photo[1] / high) / framing.zoom
    wide, high = wide * scale, high * scale
    left, right = _side(photo[0], wide, framing.across)
    top, bottom = _side(photo[1], high, framing.down)
    return (left, top, right, bottom), scale


def _side(photo: int, view: float, part: float) -> tuple[float, float]:
    """Return where a view begins and ends on one side of a picture, `part` of the way over it."""
    begin = (photo - view) * part
    return (begin, begin + view) if begin >= 0 else (0.0, min(view, float(photo)))


def upright_size(size: tuple[int, int], turn: float) -> tuple[float, float]:
    """Return width and height of the upright box around a view that is turned by some degrees."""
    radians = math.radians(turn)
    cos, sin = abs(math.cos(radians)), abs(math.sin(radians))
    return size[0] * cos + size[1] * sin, size[0] * sin + size[1] * cos
