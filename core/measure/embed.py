"""Pictures inside the page, as JPEG in an address."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import torch
from attrs import frozen
from PIL import Image
from torch import Tensor

from ..pictures import to_pil
from .scrubs import Scrub

WIDEST = 320  # pixels of a frame of a strip
BUDGET = 9_500_000  # characters that all scrubs may take, so that a page stays below 15 MB
QUALITIES = (88, 80, 70, 55)


def data_uri(frame: Tensor) -> str:
    """Give a uint8 frame `[3, P, Q]` as a JPEG inside an address, 320 pixels wide at most."""
    picture = to_pil(frame)
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(picture.height * WIDEST / picture.width)))
    return address(picture, quality=92, subsampling=0)


def address(picture: Image.Image, *, quality: int, subsampling: int) -> str:
    """Give a picture as a JPEG inside an address."""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality, subsampling=subsampling)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@frozen(kw_only=True)
class Sheets:
    """Scrubs as pictures: for each scrub and panel all frames in one column, and their quality."""

    pictures: tuple[tuple[str, ...], ...]
    quality: int


def sheets(scrubs: Sequence[Scrub], budget: int = BUDGET) -> Sheets:
    """Give the pictures of scrubs in the best JPEG quality, 55 to 88, that keeps to the budget.

    Frames of a scrub stand under each other in one picture a panel: a page can then go to any of
    them without loading anything, and a few large pictures cost less than many small ones.
    """
    found = Sheets(pictures=(), quality=QUALITIES[0])
    for quality in QUALITIES:
        pictures = tuple(tuple(_sheet(p.frames, quality) for p in s.panels) for s in scrubs)
        found = Sheets(pictures=pictures, quality=quality)
        if sum(len(picture) for row in pictures for picture in row) <= budget:
            break
    return found


def _sheet(frames: Tensor, quality: int) -> str:
    column = to_pil(torch.cat(list(frames), dim=1))
    return address(column, quality=quality, subsampling=2)
