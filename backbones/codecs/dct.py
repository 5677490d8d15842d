"""A weightless causal video codec: the strongest coefficients of an orthonormal 3D DCT."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor

from ...core.values.shapes import Latents
from .blocks import BLOCK, COLOURS, BlockCodec, from_blocks, to_blocks
from .specs import Dct


class DctCodec(BlockCodec[Dct]):
    """Codec without weights: each 4×8×8 block as its strongest DCT coefficients (design §6).

    Colours go through an orthonormal transform of their own (the DCT of R, G, B: grey and two
    differences), so the whole is one orthonormal basis of which a fixed set of rows is kept; each
    channel is normalised by a fixed mean and standard deviation. Both were fitted once on real
    clips (`experiments/fit_dct.py`). Linear, causal, and streaming is exact in any chunks.
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

    def encode_fours(self, frames: Tensor) -> Latents:
        """Return the normalised coefficients that are kept of each block."""
        blocks = to_blocks(frames)
        raw = blocks @ self.basis.to(blocks.dtype).T
        latents = (raw - self.mean.to(raw.dtype)) / self.std.to(raw.dtype)
        return rearrange(latents, "b t h w c -> b c t h w")

    def decode_fours(self, latents: Latents) -> Tensor:
        """Return the frames whose other coefficients are 0."""
        kept = rearrange(latents, "b c t h w -> b t h w c")
        raw = kept * self.std.to(kept.dtype) + self.mean.to(kept.dtype)
        return from_blocks(raw @ self.basis.to(kept.dtype))


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
