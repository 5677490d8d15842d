"""Tokens on a regular grid of memory frames as a part of memory."""

from __future__ import annotations

from torch import Tensor

from .grid import Rate, Size3
from .memory import Part
from .positions import token_places


def grid_part(
    name: str,
    tokens: Tensor,
    *,
    rate: Rate,
    size: Size3,
    patch: Size3,
    grid: Size3,
    start: Tensor,
    length: Tensor,
    skip: int = 0,
    features: dict[str, Tensor] | None = None,
) -> Part:
    """Give a part of tokens `[B, T', S, D]`, placed by `core.positions.token_places`.

    Args:
        name: of the part.
        tokens: of T' memory frames of S = rows × columns cells.
        rate: latents and patch cells to a token.
        size: of the history in latents (only height and width are read).
        patch: of the DiT.
        grid: rows and columns of the tokens (its time is not read).
        start: absolute latent frame of the window, `[B]`.
        length: real latents of the window so far, `[B]`.
        skip: memory frames of the window before the first of `tokens`.
        features: named features `[B, T', S, F]`.
    """
    shown = Size3(time=tokens.shape[1], height=grid.height, width=grid.width)
    positions, extents, valid = token_places(
        rate, size, patch, shown, start=start, length=length, skip=skip
    )
    return Part(
        name=name,
        tokens=tokens.flatten(1, 2),
        positions=positions,
        extents=extents,
        valid=valid,
        features={key: x.flatten(1, 2) for key, x in (features or {}).items()},
    )
