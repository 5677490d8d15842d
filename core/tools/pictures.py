"""Pictures: uint8 tensors `[3, P, Q]` as PNG files and strips."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from .files import whole_file


def side_by_side(images: Sequence[Tensor]) -> Tensor:
    """Return images of one height next to each other, `[3, P, Q₁ + Q₂ + …]`."""
    return torch.cat(list(images), dim=2)


def to_pil(image: Tensor) -> Image.Image:
    """Return a uint8 tensor `[3, P, Q]` as a PIL image."""
    return Image.fromarray(rearrange(image, "c p q -> p q c").contiguous().cpu().numpy())


def png_bytes(image: Tensor) -> bytes:
    """Return the bytes of an image's PNG file."""
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(path: Path, image: Tensor) -> Path:
    """Write an image as PNG, whole or not at all, and return its path."""
    data = png_bytes(image)
    with whole_file(path) as part:
        part.write_bytes(data)
    return path
