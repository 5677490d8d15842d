"""From a decoded frame to pixels: upright, square, resized by area and cropped."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from attrs import Factory, define, frozen
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from .bucket import Placement

Pixels = NDArray[np.uint8]

# swscale's area averaging with exact chroma and rounding: without these flags pictures from 4:2:0
# come out up to two grey levels too dark. Bit exact, so that machines agree.
SCALING = 0x20 | 0x2000 | 0x4000 | 0x40000 | 0x80000


def square_size(frame: Any, aspect: Fraction | None) -> tuple[int, int]:
    """Give height and width of a frame in square pixels, never fewer than it has.

    `aspect` is width over height of one pixel. Within 2 % of square it is what an encoder rounded
    the size by, beyond 1:8 an error of the file; both are taken for square, as none is.
    """
    if not aspect or not Fraction(1, 8) <= aspect <= 8 or abs(aspect - 1) < Fraction(1, 50):
        return frame.height, frame.width
    if aspect >= 1:
        return frame.height, round(frame.width * aspect)
    return round(frame.height / aspect), frame.width


@frozen
class Turn:
    """How decoded pixels become upright: transposed first, then mirrored."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    degrees: int = 0  # clockwise, as players turn the picture

    @classmethod
    def of(cls, frame: Any) -> Turn:
        """Give the turn that the frame's display matrix asks for, to the nearest quarter."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        matrix = np.frombuffer(bytes(data), dtype=np.int32).astype(float)
        # A source pixel (x, y) is shown at (across·x + back·y, down·x + ahead·y).
        across, down, back, ahead = matrix[0], matrix[1], matrix[3], matrix[4]
        degrees = int(np.round(np.degrees(np.arctan2(down, across)) / 90)) * 90 % 360
        if abs(across) + abs(ahead) >= abs(down) + abs(back):
            return cls(False, bool(ahead < 0), bool(across < 0), degrees)
        return cls(True, bool(down < 0), bool(back < 0), degrees)

    def __call__(self, pixels: Pixels) -> Pixels:
        """Give `pixels` [H, W, 3] upright."""
        if self.transpose:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1]


@define
class Renderer:
    """Makes frames of one video into pixels [H, W, 3] at a placement, RGB, alpha dropped."""

    placement: Placement
    turn: Turn
    reformatter: Any = Factory(VideoReformatter)

    def __call__(self, frame: Any) -> Pixels:
        """Give the pixels of `frame`; a frame of another size than the first is stretched."""
        placed = self.placement
        height, width = placed.resized_height, placed.resized_width
        if self.turn.transpose:
            height, width = width, height
        resized = self.reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=SCALING
        )
        pixels = self.turn(resized.to_ndarray())
        rows = slice(placed.crop_top, placed.crop_top + placed.height)
        columns = slice(placed.crop_left, placed.crop_left + placed.width)
        return np.ascontiguousarray(pixels[rows, columns])
