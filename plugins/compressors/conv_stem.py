"""The pixel stem of `conv`: frames instead of latents into the HR branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.codec import from_bytes
from ...core.grid import Geometry
from ...core.history import History


class PixelStem(nn.Module):
    """Frames to one feature cell a latent cell: a conv whose kernel and stride are the VAE's.

    With a 4×8×8 VAE that is 4 frames of 8×8 pixels a cell; frame 0, alone in its latent, is
    repeated. Each cell sees its own pixels only, so that any chunk of a history gives its cells.
    """

    def __init__(self, width: int, geometry: Geometry) -> None:
        super().__init__()
        stride = geometry.vae_stride
        self.kernel = (stride.time, stride.height, stride.width)
        self.weight = nn.Parameter(torch.empty(width, 3, *self.kernel))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)

    def forward(self, history: History) -> Tensor:
        """Give features `[B, C, T, H, W]` of a window or chunk.

        An empty window gives one frame that is no one's, so that the graph holds the parameters.

        Raises:
            ValueError: the history has no pixels, or not those of its latents.
        """
        frames = from_bytes(self._frames(history), self.weight.dtype)
        return F.conv3d(frames, self.weight, self.bias, stride=self.kernel)

    def _frames(self, history: History) -> Tensor:
        """Give whole cells of frames, uint8 `[B, 3, t·T, h·H, w·W]`."""
        pixels, size, first = history.pixels, history.size, history.offset == 0
        if pixels is None:
            raise ValueError("conv with stem=pixels needs the pixels; the history has none")
        time, height, width = self.kernel
        rows, columns = size.height * height, size.width * width
        if not size.time:
            return pixels.new_zeros(history.batch, 3, time, rows, columns)
        due = time * size.time - (time - 1 if first else 0)
        if pixels.shape[2] != due or pixels.shape[3] > rows or pixels.shape[4] > columns:
            found = "×".join(map(str, pixels.shape[2:]))
            raise ValueError(f"latents {size} come with {due}×{rows}×{columns} pixels, not {found}")
        if first:
            pixels = torch.cat([pixels[:, :, :1].expand(-1, -1, time - 1, -1, -1), pixels], dim=2)
        return _filled(pixels, rows, columns)


def _filled(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """Give frames of `rows` × `columns`: the last row and column are repeated where some lack."""
    down, right = rows - pixels.shape[3], columns - pixels.shape[4]
    below = pixels[..., -1:, :].expand(*pixels.shape[:3], down, pixels.shape[4])
    pixels = torch.cat([pixels, below], dim=3) if down else pixels
    beside = pixels[..., -1:].expand(*pixels.shape[:4], right)
    return torch.cat([pixels, beside], dim=4) if right else pixels
