"""A full-transformer encoder: LR tokens as in `conv`, attention alone on the full-size latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from ...core.interfaces.compressor import Fit, Length, Needs, State, pad_to
from ...core.interfaces.streaming import LatentSpan, Streamed, incomplete_block, take_blocks
from ...core.values.grid import Geometry, Rounding, Size3
from ...core.values.history import History
from ...core.values.memory import Memory
from ...kernels.reference import out_tokens, split_heads, streamed_attention
from .conv_layers import TokenHead
from .frames import repeat_ends
from .specs import Transformer
from .tokens import LrBranch

BASE = 100.0  # of the rotary angles: a window is some tens of cells wide (RoPE-ViT, 2024)


class TransformerCompressor(Streamed[Transformer]):
    """LR tokens (the DiT's first projection of LR latents) + features of a causal transformer.

    One part, `transformer-<rate>`, tokens in time, row, column order. With both branches the HR
    output starts at zero, so that a new encoder gives the DiT's own tokens. Latents are taken to
    the dtype of the weights. With `features` the part brings the last hidden states, as `hidden`.

    The state holds the latents that complete no block, the last LR latent, and a window of keys
    and values a layer; it is constant once `window` memory frames were seen.
    """

    def __init__(self, spec: Transformer, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.lr = LrBranch(part_name(spec), spec.rate, fit) if spec.lr else None
        self.hr = HrTransformer(spec, fit.geometry) if spec.hr else None

    @classmethod
    def needs(cls, spec: Transformer) -> Needs:
        """Return the LR rate and HR latents, each only where its branch is on."""
        return Needs(rates=frozenset({spec.rate} if spec.lr else ()), hr=spec.hr)

    @classmethod
    def context_length(cls, spec: Transformer, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens: the cells of the token grid."""
        return Length(tokens=spec.rate.token_grid(size, geometry.patch).cells)

    @classmethod
    def features(cls, spec: Transformer) -> dict[str, int]:
        """Return the width of `hidden`, that of the layers, where `features` is on."""
        width = spec.heads * spec.head_width
        return {f"{part_name(spec)}.hidden": width} if spec.features else {}

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return the tokens of the blocks that it completed.

        Raises:
            ValueError: the chunk does not follow what the state has seen, or its LR latents are
                not there or not as many as must travel with it.
        """
        new, complete = take_blocks(state, chunk, self.spec.rate.time)
        lr = self.lr.take(new, chunk) if self.lr else None
        memory, windows = self._encode(complete, lr, state or {})
        return {**new, **windows}, memory

    def pending(self, state: State) -> Memory:
        """Return the provisional token frame of an incomplete block, its last latent repeated."""
        lr = self.lr.rest(state, 1) if self.lr else None
        return self._encode(incomplete_block(state, self.spec.rate.time), lr, state)[0]

    def _encode(self, span: LatentSpan, lr: Tensor | None, past: State) -> tuple[Memory, State]:
        """Return the memory of latents and their LR latents, and the windows to go on from."""
        if not span.latents.shape[2]:
            return Memory(size=span.seen), {}
        tokens = self.lr.tokens(lr, span.seen) if self.lr and lr is not None else None
        windows: State = {}
        features = {}
        if self.hr:
            hidden, windows = self.hr(span.latents, span.first, past)
            tokens = out_tokens(hidden, self.hr.out.weight, self.hr.out.bias, tokens)
            features = {"hidden": hidden} if self.spec.features else {}
        assert tokens is not None  # the spec refuses both branches off
        memory = span.memory(
            part_name(self.spec),
            tokens,
            self.spec.rate,
            self.geometry.patch,
            features,
            rounding=cast("Rounding", self.spec.rounding),
        )
        return memory, windows


def part_name(spec: Transformer) -> str:
    """Return the name of the part that the compressor makes."""
    return f"transformer-{spec.rate}"


class HrTransformer(nn.Module):
    """Full-size latents → features `[B, T', S, W]` of S = rows × columns memory cells.

    State: `layer.i`, keys and values of the last window − 1 memory frames.
    """

    def __init__(self, spec: Transformer, geometry: Geometry) -> None:
        super().__init__()
        rate, patch, width = spec.rate, geometry.patch, spec.heads * spec.head_width
        self.spec = spec
        self.cells = (rate.time, rate.height * patch.height, rate.width * patch.width)
        self.patchify = nn.Conv3d(geometry.channels, width, self.cells, stride=self.cells)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(spec.layers))
        self.norm = nn.LayerNorm(width)
        self.out = TokenHead(width, geometry.width, zero=spec.lr)

    def forward(
        self, latents: Tensor, first: int, past: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the features of blocks, and the windows to go on from.

        Args:
            latents: `[B, C, n, H, W]` with n ≥ 1, of which the last block may be incomplete.
            first: latents of the window before them; at 0 the first is a block of its own.
            past: the windows that the call before returned; empty at the start.
        """
        blocks = pad_to(self._whole_blocks(latents, first), *self.cells[1:])
        grid = self.patchify(blocks.to(self.patchify.weight.dtype))  # [B, W, T', rows, columns]
        skip = self.spec.rate.settled_tokens(first)
        rotary = rotation(self.spec.head_width, skip, *grid.shape[2:])
        rotary = rotary.to(grid.device, torch.promote_types(grid.dtype, torch.float32))
        x, windows = rearrange(grid, "b w t rows columns -> b t (rows columns) w"), {}
        for index, layer in enumerate(self.layers):
            name = f"layer.{index}"
            x, windows[name] = layer(x, rotary, past.get(name))
        return self.norm(x), windows

    def _whole_blocks(self, latents: Tensor, first: int) -> Tensor:
        """Return latents that fill blocks: latent 0 repeated before itself, the last one behind."""
        before = 0 if first else self.cells[0] - 1
        after = -(before + latents.shape[2]) % self.cells[0]
        return repeat_ends(latents, before=before, after=after)


class Layer(nn.Module):
    """One pre-norm layer: attention in a window of memory frames, then feed-forward."""

    def __init__(self, spec: Transformer) -> None:
        super().__init__()
        width = spec.heads * spec.head_width
        self.heads = spec.heads
        self.window = spec.window
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_in = nn.Linear(width, spec.ffn)
        self.ffn_out = nn.Linear(spec.ffn, width)

    def forward(self, x: Tensor, rotary: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return new features of frames, and the keys and values to go on from.

        Args:
            x: `[B, T, S, W]`: T frames of S cells.
            rotary: cosine and sine of each cell's angles, `[2, T, S, d / 2]`.
            past: keys and values `[2, B, n, S, heads, d]` of the n ≤ window − 1 frames before.
        """
        query, key, value = split_heads(self.qkv(self.attention_norm(x)), self.heads)
        query, key = rotated(query, rotary), rotated(key, rotary)
        mixed, past = streamed_attention(query, key, value, past, self.window)
        x = x + self.attention_out(mixed.flatten(-2))
        return x + self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x)))), past


def rotation(width: int, skip: int, frames: int, rows: int, columns: int) -> Tensor:
    """Return cosine and sine of each cell's angles, float64 `[2, frames, S, width / 2]`.

    A third of the pairs turns with the row, as many with the column, the rest with the memory
    frame, counted from `skip`: only differences count in attention.
    """
    pairs = width // 2
    third = pairs // 3
    by_axis = [
        repeat(_angles(skip, frames, pairs - 2 * third), "t p -> t r c p", r=rows, c=columns),
        repeat(_angles(0, rows, third), "r p -> t r c p", t=frames, c=columns),
        repeat(_angles(0, columns, third), "c p -> t r c p", t=frames, r=rows),
    ]
    angles = rearrange(torch.cat(by_axis, dim=-1), "t r c p -> t (r c) p")
    return torch.stack([angles.cos(), angles.sin()])


def _angles(first: int, places: int, pairs: int) -> Tensor:
    """Return the angles `[places, pairs]` of places from `first` on along one axis, float64."""
    speeds = BASE ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    return torch.arange(first, first + places, dtype=torch.float64)[:, None] * speeds


def rotated(x: Tensor, rotary: Tensor) -> Tensor:
    """Return `[B, T, S, heads, d]` with its halves turned as pairs, worked out in rotary's dtype.

    Args:
        x: queries or keys.
        rotary: cosine and sine of each cell's angles, `[2, T, S, d / 2]`.
    """
    cos, sin = rotary[:, :, :, None]
    one, two = x.to(rotary.dtype).chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).to(x.dtype)
