"""How `vae-proj` cuts a video into blocks, and which rate the VAE's cells make."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attrs import frozen
from torch import Tensor

from ...core.errors import UserError
from ...core.grid import STEPS, Geometry, Rate, ceil_div
from ...core.history import History
from ...core.shapes import Bytes
from ..patchifier_specs import VaeProj


def rate_of(spec: VaeProj, geometry: Geometry) -> Rate:
    """Give the rate at which the VAE's cells stand over latents and patch cells.

    Raises:
        UserError: a cell of the VAE is not 1, 2, 4 or 8 of the DiT's.
    """
    stride, patch = geometry.vae_stride, geometry.patch
    return Rate(
        height=_steps(spec, spec.space, stride.height * patch.height, "pixel rows of a patch"),
        width=_steps(spec, spec.space, stride.width * patch.width, "pixel columns of a patch"),
        time=_steps(spec, spec.time, stride.time, "frames of a latent"),
    )


def _steps(spec: VaeProj, ours: int, theirs: int, what: str) -> int:
    if ours % theirs or ours // theirs not in STEPS:
        raise UserError(
            f"vae-proj: a cell of {spec.time}×{spec.space}×{spec.space} must be 1, 2, 4 or 8 times "
            f"the {theirs} {what} of this DiT"
        )
    return ours // theirs


@frozen(kw_only=True)
class Blocks:
    """The absolute grid of blocks: block b holds latents n·b + 1 … n·(b + 1), the first also 0.

    Attributes:
        tokens: memory frames of a block.
        latents: n, latents of a block.
        frames: video frames of a block.
        cell: video frames of a memory frame.
        rows, columns: pixels of a latent cell.
    """

    tokens: int
    latents: int
    frames: int
    cell: int
    rows: int
    columns: int

    @classmethod
    def of(cls, spec: VaeProj, geometry: Geometry) -> Blocks:
        """Give the grid of a spec on a backbone."""
        stride = geometry.vae_stride
        return cls(
            tokens=spec.block,
            latents=spec.block * spec.time // stride.time,
            frames=spec.block * spec.time,
            cell=spec.time,
            rows=stride.height,
            columns=stride.width,
        )

    def complete(self, latents: int) -> int:
        """Give how many blocks are complete after so many latents."""
        return max(0, latents - 1) // self.latents

    def cut(self, frames: Bytes, latents: int) -> Iterator[Bytes]:
        """Give 1 + cell·k frames a block, the first one the frame before; the last one filled up.

        Args:
            frames: the first stands for one latent (see `VaeProjCompressor._tokens`).
            latents: those that the frames count for; frames beyond are not read.
        """
        stride = self.frames // self.latents
        real = 1 + stride * (latents - 1) if latents else 0
        for first in range(0, max(real - 1, min(real, 1)), self.frames):
            block = frames[:, :, first : min(first + self.frames + 1, real)]
            yield _filled(block, 1 + ceil_div(block.shape[2] - 1, self.cell) * self.cell)

    def checked(self, history: History) -> Bytes:
        """Give the pixels of a window or chunk.

        Raises:
            ValueError: it has none, or not those of its latents.
        """
        pixels, size = history.pixels, history.size
        if pixels is None:
            raise ValueError("vae-proj needs the pixels; the history has none")
        stride = self.frames // self.latents
        due = stride * size.time - (stride - 1 if history.offset == 0 else 0)
        rows, columns = size.height * self.rows, size.width * self.columns
        if size.time and (
            pixels.shape[2] != due or pixels.shape[3] > rows or pixels.shape[4] > columns
        ):
            found = "×".join(map(str, pixels.shape[2:]))
            raise ValueError(f"latents {size} come with {due}×{rows}×{columns} pixels, not {found}")
        return _whole_cells(pixels, rows, columns)


def _filled(frames: Tensor, total: int) -> Tensor:
    """Give `total` frames, the last one repeated."""
    missing = total - frames.shape[2]
    if not missing:
        return frames
    return torch.cat([frames, frames[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)


def _whole_cells(pixels: Bytes, rows: int, columns: int) -> Bytes:
    """Give frames of `rows` × `columns`, the last row and column repeated where some lack."""
    down = [min(i, pixels.shape[3] - 1) for i in range(rows)]
    across = [min(i, pixels.shape[4] - 1) for i in range(columns)]
    if len(down) == pixels.shape[3] and len(across) == pixels.shape[4]:
        return pixels
    return pixels[..., down, :][..., across]
