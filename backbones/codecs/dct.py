"""A weightless causal video codec: the strongest coefficients of an orthonormal 3D DCT."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from ...core.interfaces.codec import Codec
from ...core.interfaces.compressor import State
from ...core.values.grid import Size3, ceil_div
from ...core.values.shapes import Latents, Pixels
from .specs import Dct
from .tiles import check_frames, check_latents

BLOCK = Size3(time=4, height=8, width=8)
COLOURS = 3


class DctCodec(Codec[Dct]):
    """Codec without weights: each 4×8×8 block as its strongest DCT coefficients (design §6).

    Colours go through an orthonormal transform of their own (the DCT of R, G, B: grey and two
    differences), so the whole is one orthonormal basis of which a fixed set of rows is kept; each
    channel is normalised by a fixed mean and standard deviation. Both were fitted once on real
    clips (`experiments/fit_dct.py`). Latent 0 stands for frame 0 shown four times and decodes to
    one frame, the mean of the four. Linear, causal, and streaming is exact in any chunks. Frames
    whose sides are no multiple of 8 have their last row and column repeated: the caller crops what
    comes back. Results have the dtype of what is given.
    """

    basis: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, spec: Dct) -> None:
        super().__init__(spec)
        fitted = constants(spec.channels)
        for name in ("basis", "mean", "std"):
            self.register_buffer(name, fitted[name].clone(), persistent=False)

    @property
    def channels(self) -> int:
        """Channels C of a latent cell: the coefficients kept."""
        return self.spec.channels

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

    @property
    def rgb(self) -> tuple[Tensor, Tensor]:
        """The mean colour of a block, which is exact: the codec is linear."""
        means = reduce(self.basis, "channel (rgb cell) -> rgb channel", "mean", rgb=COLOURS)
        return means * self.std, means @ self.mean

    @property
    def channel_reach(self) -> Tensor:
        """The standard deviations that latents were divided by, over their mean."""
        return (self.std / self.std.mean()).float()

    @property
    def identity(self) -> str:
        """Name and hash of the constants."""
        rows = constants(self.spec.channels)
        data = b"".join(rows[name].numpy().tobytes() for name in ("places", "mean", "std"))
        return f"dct-{self.spec.channels}-{hashlib.sha256(data).hexdigest()[:16]}"

    def encode(self, chunk: Pixels, state: State | None = None) -> tuple[Latents, State]:
        """Return the latents `[B, C, T, ⌈P/8⌉, ⌈Q/8⌉]` of the next frames, and the state.

        Raises:
            ValueError: the chunk holds no floats, or not 1 + 4k frames (first), 4k ≥ 4 (later).
        """
        check_frames(chunk, BLOCK.time, first=state is None)
        if state is None:
            head = repeat(chunk[:, :, 0], "b c h w -> b c t h w", t=BLOCK.time)
            chunk = torch.cat([head, chunk[:, :, 1:]], dim=2)
        blocks = to_blocks(chunk)
        raw = blocks @ self.basis.to(blocks.dtype).T
        latents = (raw - self.mean.to(raw.dtype)) / self.std.to(raw.dtype)
        return rearrange(latents, "b t h w c -> b c t h w"), _after(state, latents.shape[1])

    def decode(self, chunk: Latents, state: State | None = None) -> tuple[Pixels, State]:
        """Return the pixels `[B, 3, F, 8H, 8W]` of the next latents, and the state.

        Raises:
            ValueError: the chunk holds no latent, or latents of another codec.
        """
        check_latents(chunk, self.channels)
        latents = rearrange(chunk, "b c t h w -> b t h w c")
        raw = latents * self.std.to(chunk.dtype) + self.mean.to(chunk.dtype)
        pixels = from_blocks(raw @ self.basis.to(chunk.dtype))
        if state is None:
            head = pixels[:, :, : BLOCK.time].mean(dim=2, keepdim=True)
            pixels = torch.cat([head, pixels[:, :, BLOCK.time :]], dim=2)
        return pixels, _after(state, chunk.shape[2])


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


def dct(size: int) -> Tensor:
    """Return the orthonormal DCT-II, `[frequency, sample]`, float64."""
    k = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi / size * (k + 0.5) * k[:, None]) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


def full_basis() -> Tensor:
    """Return all 768 basis blocks `[768, 768]`, orthonormal rows in the order of `to_blocks`."""
    sides = (COLOURS, BLOCK.time, BLOCK.height, BLOCK.width)
    return functools.reduce(torch.kron, [dct(side) for side in sides])


@functools.cache
def constants(channels: int) -> dict[str, Tensor]:
    """Return the fitted basis `[C, 768]`, mean and std `[C]` (float64) and places `[C, 4]`."""
    file = Path(__file__).with_name(f"dct{channels}.json")
    fitted: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    places = torch.tensor(fitted["indices"], dtype=torch.int64)
    strides = torch.tensor([BLOCK.cells, BLOCK.height * BLOCK.width, BLOCK.width, 1])
    rows = (places * strides).sum(dim=1)
    return {
        "basis": full_basis()[rows],
        "mean": torch.tensor(fitted["mean"], dtype=torch.float64),
        "std": torch.tensor(fitted["std"], dtype=torch.float64),
        "places": places,
    }
