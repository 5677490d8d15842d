"""Where memory tokens sit: midpoint and extent of the latent cells that each covers (design §2)."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import Rate, Size3, ceil_div


def spans(cells: int, step: int, count: int) -> tuple[Tensor, Tensor]:
    """Give first and last cell of `count` blocks of `step` cells, cut at `cells`; float64."""
    first = torch.arange(count, dtype=torch.float64) * step
    last = torch.clamp(first + step, max=cells) - 1
    return first, last


def time_spans(rate: Rate, length: Tensor, tokens: range) -> tuple[Tensor, Tensor]:
    """Give first and last latent that memory frames cover, `[B, len(tokens)]`, float64.

    Frame 0 covers latent 0; frame j covers r(j − 1) + 1 … rj, cut at the history's end (a
    provisional frame covers what is there).
    """
    j = torch.arange(tokens.start, tokens.stop, dtype=torch.float64)
    first = torch.where(j > 0, rate.time * (j - 1) + 1, 0.0)
    last = torch.minimum(rate.time * j, length[:, None].to(torch.float64) - 1)
    return first.expand_as(last), torch.maximum(last, first)


def token_places(
    rate: Rate, size: Size3, patch: Size3, grid: Size3, *, start: Tensor, length: Tensor, skip: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Give positions and extents `[B, N, 3]` and validity `[B, N]` of a grid of memory tokens.

    Args:
        rate: the compression rate.
        size: of the latents (only height and width are read).
        patch: of the DiT; rows and columns are counted in its cells.
        grid: of the tokens; N = time × height × width, time slowest.
        start: absolute latent frame of the window, `[B]`.
        length: real latents of the window so far, `[B]`.
        skip: memory frames of the window before the first of `grid`.
    """
    t0, t1 = time_spans(rate, length.cpu(), range(skip, skip + grid.time))
    h0, h1 = spans(ceil_div(size.height, patch.height), rate.height, grid.height)
    w0, w1 = spans(ceil_div(size.width, patch.width), rate.width, grid.width)
    shape = (t0.shape[0], grid.time, grid.height, grid.width)

    def spread(t: Tensor, h: Tensor, w: Tensor) -> Tensor:
        cells = (t[:, :, None, None], h[:, None], w[None, :])
        return torch.stack([x.expand(shape) for x in cells], dim=-1).flatten(1, 3)

    origin = start.cpu().to(torch.float64)[:, None]
    positions = spread((t0 + t1) / 2 + origin, (h0 + h1) / 2, (w0 + w1) / 2)
    extents = spread(t1 - t0 + 1, h1 - h0 + 1, w1 - w0 + 1)
    real = t0 < length.cpu()[:, None].to(torch.float64)
    valid = real[:, :, None].expand(-1, -1, grid.height * grid.width).flatten(1)
    return positions, extents, valid
