"""Random crops of cached windows: cheap training samples at the scale of full frames."""

from __future__ import annotations

import random
from typing import Self

import attrs
from attrs import frozen

from ..grid import Geometry, Rate
from ..history import History
from .record import Record


@frozen(kw_only=True)
class Area:
    """A rectangle of latent cells of a frame."""

    top: int
    left: int
    height: int
    width: int


@frozen(kw_only=True)
class Crops:
    """Draws crops of one size; their corners stand on the grid of the coarsest memory token.

    So HR and LR cells stay aligned. A frame smaller than a crop is taken whole along that side.

    Attributes:
        height, width: latent rows and columns of a crop.
        rows, columns: latent rows and columns of a token of the coarsest rate.
    """

    height: int
    width: int
    rows: int
    columns: int

    @classmethod
    def of(cls, size: tuple[int, int], geometry: Geometry, rates: frozenset[Rate]) -> Self | None:
        """Give the crops of `train.crop`, or None where it is 0, 0: whole frames."""
        if not all(size):
            return None
        rows = geometry.patch.height * max((rate.height for rate in rates), default=1)
        columns = geometry.patch.width * max((rate.width for rate in rates), default=1)
        return cls(height=size[0], width=size[1], rows=rows, columns=columns)

    def size(self, record: Record) -> tuple[int, int]:
        """Give height and width of a clip's crops."""
        return min(record.height, self.height), min(record.width, self.width)

    def draw(self, rng: random.Random, record: Record) -> Area:
        """Give a random crop of a clip."""
        height, width = self.size(record)
        top = self.rows * rng.randint(0, (record.height - height) // self.rows)
        left = self.columns * rng.randint(0, (record.width - width) // self.columns)
        return Area(top=top, left=left, height=height, width=width)


def crop(history: History, area: Area) -> History:
    """Give an area of a history: its latents, the LR latents over it, and its pixels.

    It is what encoding the cropped video would give only where the codec sees no further than its
    cells; elsewhere the border has seen beyond the crop.
    """
    bottom, right = area.top + area.height, area.left + area.width
    pixels = history.pixels
    if pixels is not None:
        scale = pixels.shape[-1] // history.latents.shape[-1]
        pixels = pixels[..., scale * area.top : scale * bottom, scale * area.left : scale * right]
    return attrs.evolve(
        history,
        latents=history.latents[..., area.top : bottom, area.left : right],
        lr={
            rate: x[
                ...,
                area.top // rate.height : -(-bottom // rate.height),
                area.left // rate.width : -(-right // rate.width),
            ]
            for rate, x in history.lr.items()
        },
        pixels=pixels,
    )
