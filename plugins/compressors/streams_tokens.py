"""The DiT's own tokens of full-size latents, and where whole frames of them sit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.fit import Fit, pad_to
from ...core.grid import Rate, Size3, ceil_div
from ...core.positions import spans


class OwnTokens(nn.Module):
    """The DiT's first projection in two steps: cells to patches, patches to tokens.

    The second is linear, so that means of tokens are the tokens of mean patches, at a fraction of
    the width. Nothing is trained.

    Raises:
        UserError: the DiT's patch spans several latent frames.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        if fit.geometry.patch.time != 1:
            raise UserError(f"a patch of one latent frame is needed, not of {fit.geometry.patch}")
        self.register_buffer("weight", fit.patch_weight.clone(), persistent=False)
        self.register_buffer("bias", fit.patch_bias.clone(), persistent=False)

    def cut(self, latents: Tensor) -> Tensor:
        """Give the patches `[B, T, H', W', F]` of latents `[B, C, T, H, W]`; odd sizes round up."""
        rows, columns = (int(n) for n in self.weight.shape[3:])
        whole = pad_to(latents.to(self.weight.dtype), rows, columns)
        batch, channels, time, height, width = whole.shape
        shape = (batch, channels, time, height // rows, rows, width // columns, columns)
        return whole.reshape(shape).permute(0, 2, 3, 5, 1, 4, 6).flatten(4)

    def project(self, patches: Tensor) -> Tensor:
        """Give the tokens `[..., D]` of patches `[..., F]`."""
        return F.linear(patches, self.weight.flatten(1), self.bias)


def block_means(x: Tensor, dim: int, step: int) -> Tensor:
    """Give means of `step` neighbours along `dim`; the last block is of what is left."""
    count = x.shape[dim] // step
    rest = x.narrow(dim, count * step, x.shape[dim] - count * step)
    means = x.narrow(dim, 0, count * step).unflatten(dim, (count, step)).mean(dim + 1)
    return torch.cat([means, rest.mean(dim, keepdim=True)], dim) if rest.shape[dim] else means


def frame_places(frames: Tensor, size: Size3, patch: Size3, rate: Rate) -> tuple[Tensor, Tensor]:
    """Give positions and extents `[B, n·S, 3]` of the tokens of single latents.

    Args:
        frames: absolute latent frames, `[B, n]`.
        size: of the latents (only height and width are read).
        patch: of the DiT; rows and columns are counted in its cells.
        rate: how many rows and columns a token covers; its time is 1.
    """
    rows, columns = ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)
    h0, h1 = spans(rows, rate.height, ceil_div(rows, rate.height))
    w0, w1 = spans(columns, rate.width, ceil_div(columns, rate.width))
    t = frames.to(torch.float64)[:, :, None, None]
    grid = torch.broadcast_tensors(t, ((h0 + h1) / 2)[:, None], ((w0 + w1) / 2)[None, :])
    shares = torch.broadcast_tensors(torch.ones_like(t), (h1 - h0 + 1)[:, None], w1 - w0 + 1)
    return torch.stack(grid, dim=-1).flatten(1, 3), torch.stack(shares, dim=-1).flatten(1, 3)
