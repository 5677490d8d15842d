"""One strided projection, begun as FramePack begins it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.fit import Fit, pad_to
from ...core.grid import Rate, ceil_div


class Projection(nn.Module):
    """Latents in blocks of rate × patch cells to tokens; kernel and stride are the block."""

    def __init__(self, rate: Rate, fit: Fit) -> None:
        super().__init__()
        self.rate = rate
        self.weight = nn.Parameter(spread(fit.patch_weight.detach(), rate))
        self.bias = nn.Parameter(fit.patch_bias.detach().clone())

    def forward(self, latents: Tensor) -> Tensor:
        """Give tokens `[B, T', S, D]` of latents `[B, C, T, H, W]`, T ≥ 1.

        Incomplete blocks at the end, the bottom and the right are filled by repeating the last
        frame, row and column, as FramePack does.
        """
        kernel = tuple(self.weight.shape[2:])
        latents = latents.to(self.weight.dtype)
        missing = ceil_div(latents.shape[2], kernel[0]) * kernel[0] - latents.shape[2]
        if missing:
            last = latents[:, :, -1:].expand(-1, -1, missing, -1, -1)
            latents = torch.cat([latents, last], dim=2)
        padded = pad_to(latents, kernel[1], kernel[2])
        tokens = F.conv3d(padded, self.weight, self.bias, stride=kernel)
        return tokens.flatten(3).permute(0, 2, 3, 1)


def spread(weight: Tensor, rate: Rate) -> Tensor:
    """Give a patch embedding `[D, C, t, h, w]` repeated over rate's cells, divided by their number.

    It then gives the DiT's own token of the mean over each group of rate's cells.

    Source: FramePack's code, `initialize_weight_from_another_conv3d`.
    """
    for axis, times in ((2, rate.time), (3, rate.height), (4, rate.width)):
        weight = weight.repeat_interleave(times, dim=axis)
    return weight / (rate.time * rate.height * rate.width)
