"""What codecs of blocks share: 4×8×8 pixels become one latent cell, four frames a latent."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ...core.interfaces.codec import Codec
from ...core.interfaces.compressor import State
from ...core.interfaces.spec import CodecSpec
from ...core.values.grid import Size3, ceil_div
from ...core.values.shapes import Latents, Pixels
from .tiles import check_frames, check_latents

S = TypeVar("S", bound=CodecSpec)
BLOCK = Size3(time=4, height=8, width=8)
COLOURS = 3
NUMBERS = COLOURS * BLOCK.cells


class BlockCodec(Codec[S]):
    """A causal codec whose latents each stand for four frames, and read no others.

    Latent 0 stands for frame 0 shown four times and decodes to one frame, the mean of the four.
    Frames whose sides are no multiple of 8 have their last row and column repeated: the caller
    crops what comes back. The state only says whether the first latent is behind. Results have the
    dtype of what is given. A subclass answers `encode_fours` and `decode_fours`.
    """

    @property
    def stride(self) -> Size3:
        """Pixels to a latent cell: 4×8×8."""
        return BLOCK

    @property
    def causal(self) -> bool:
        """True: a latent reads its own four frames only."""
        return True

    @property
    def margin(self) -> int:
        """1: no pixel depends on the latent before, but a first latent decodes to one frame."""
        return 1

    @property
    def decode_reach(self) -> int:
        """1, as `margin`: the state only says whether the first latent is behind."""
        return 1

    @property
    def encode_reach(self) -> int:
        """1: the same of the first frame."""
        return 1

    @abstractmethod
    def encode_fours(self, frames: Tensor) -> Latents:
        """Return the latents `[B, C, T, ⌈P/8⌉, ⌈Q/8⌉]` of frames `[B, 3, 4T, P, Q]`."""

    @abstractmethod
    def decode_fours(self, latents: Latents) -> Tensor:
        """Return the frames `[B, 3, 4T, 8H, 8W]` of latents `[B, C, T, H, W]`."""

    def encode(self, chunk: Pixels, state: State | None = None) -> tuple[Latents, State]:
        """Return the latents `[B, C, T, ⌈P/8⌉, ⌈Q/8⌉]` of the next frames, and the state.

        Raises:
            ValueError: the chunk holds no floats, or not 1 + 4k frames (first), 4k ≥ 4 (later).
        """
        check_frames(chunk, BLOCK.time, first=state is None)
        if state is None:
            head = repeat(chunk[:, :, 0], "b c h w -> b c t h w", t=BLOCK.time)
            chunk = torch.cat([head, chunk[:, :, 1:]], dim=2)
        latents = self.encode_fours(chunk)
        return latents.to(chunk.dtype), _after(state, latents.shape[2])

    def decode(self, chunk: Latents, state: State | None = None) -> tuple[Pixels, State]:
        """Return the pixels `[B, 3, F, 8H, 8W]` of the next latents, and the state.

        Raises:
            ValueError: the chunk holds no latent, or latents of another codec.
        """
        check_latents(chunk, self.channels)
        pixels = self.decode_fours(chunk)
        if state is None:
            head = pixels[:, :, : BLOCK.time].mean(dim=2, keepdim=True)
            pixels = torch.cat([head, pixels[:, :, BLOCK.time :]], dim=2)
        return pixels.to(chunk.dtype), _after(state, chunk.shape[2])


def _after(state: State | None, latents: int) -> State:
    """Return the state after more latents; all that matters is whether the first is behind."""
    before = 0 if state is None else int(state["latents"])
    return {"latents": torch.tensor(before + latents)}


def to_blocks(frames: Tensor) -> Tensor:
    """Return frames `[B, 3, 4T, P, Q]` as blocks `[B, T, ⌈P/8⌉, ⌈Q/8⌉, 768]`.

    In a block colour is slowest, then time, row, column. Last row and column are repeated to
    whole blocks.
    """
    height, width = frames.shape[3:]
    rows, columns = ceil_div(height, BLOCK.height), ceil_div(width, BLOCK.width)
    missing = (0, columns * BLOCK.width - width, 0, rows * BLOCK.height - height, 0, 0)
    padded = F.pad(frames, missing, mode="replicate") if any(missing) else frames
    return rearrange(
        padded, "b c (t i) (h j) (w k) -> b t h w (c i j k)", i=BLOCK.time, j=BLOCK.height,
        k=BLOCK.width,
    )  # fmt: skip


def from_blocks(blocks: Tensor) -> Tensor:
    """Return the frames `[B, 3, 4T, 8H, 8W]` of blocks `[B, T, H, W, 768]`."""
    return rearrange(
        blocks, "b t h w (c i j k) -> b c (t i) (h j) (w k)", i=BLOCK.time, j=BLOCK.height,
        k=BLOCK.width,
    )  # fmt: skip
