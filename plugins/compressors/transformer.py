"""A full-transformer encoder: LR tokens as in `conv`, attention alone on the full-size latents."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...core.interfaces.compressor import Fit, Length, Needs, State, pad_to
from ...core.interfaces.streaming import Run, Streamed, take_blocks, waiting
from ...core.values.grid import Geometry, Size3
from ...core.values.history import History
from ...core.values.memory import Memory, grid_part
from ...kernels.reference import out_tokens
from .conv_layers import windowed
from .specs import Conv, Transformer
from .tokens import LrBranch

# ⟦plugins/compressors/transformer_layers.py⟧ The transformer on full-size latents: blocks to cells, rotary axes, causal layers.


BASE = 100.0  # of the rotary angles: a window is some tens of cells wide (RoPE-ViT, 2024)


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

    def forward(self, x: Tensor, turn: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return new features of frames, and the keys and values to go on from.

        Args:
            x: `[B, T, S, W]`: T frames of S cells.
            turn: cosine and sine of each cell's angles, `[2, T, S, d / 2]`.
            past: keys and values `[2, B, n, S, heads, d]` of the n ≤ window − 1 frames before.
        """
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.unbind(3)
        pair = torch.stack([rotated(key, turn), value])
        pair = pair if past is None else torch.cat([past, pair], dim=2)
        seen = windowed(rotated(query, turn), pair[0], pair[1], self.window)
        x = x + self.attention_out(seen.flatten(-2))
        x = x + self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x))))
        kept = pair[:, :, max(pair.shape[2] - self.window + 1, 0) :]
        return x, kept.clone(memory_format=torch.contiguous_format)


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
        self.out = nn.Linear(width, geometry.width)
        if spec.lr:  # step 0 is Only-LR; alone, zero tokens would blow up under the DiT's norms
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(
        self, latents: Tensor, first: int, past: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the features of blocks, and the windows to go on from.

        Args:
            latents: `[B, C, n, H, W]` with n ≥ 1, of which the last block may be incomplete.
            first: latents of the window before them; at 0 the first is a block of its own.
            past: the windows that the call before gave; empty at the start.
        """
        blocks = pad_to(self.whole_blocks(latents, first), *self.cells[1:])
        grid = self.patchify(blocks.to(self.patchify.weight.dtype))  # [B, W, T', rows, columns]
        skip = self.spec.rate.settled_tokens(first)
        turn = rotation(self.spec.head_width, skip, *grid.shape[2:])
        turn = turn.to(grid.device, torch.promote_types(grid.dtype, torch.float32))
        x, state = grid.flatten(3).permute(0, 2, 3, 1), {}
        for index, layer in enumerate(self.layers):
            x, state[f"layer.{index}"] = layer(x, turn, past.get(f"layer.{index}"))
        return self.norm(x), state

    def whole_blocks(self, latents: Tensor, first: int) -> Tensor:
        """Return latents that fill blocks: latent 0 repeated before itself, the last one behind."""
        lead = 0 if first else self.cells[0] - 1
        tail = -(lead + latents.shape[2]) % self.cells[0]
        before = latents[:, :, :1].expand(-1, -1, lead, -1, -1)
        after = latents[:, :, -1:].expand(-1, -1, tail, -1, -1)
        return torch.cat([before, latents, after], dim=2)


def rotation(width: int, skip: int, frames: int, rows: int, columns: int) -> Tensor:
    """Return cosine and sine of the angles of a grid of cells, `[2, frames, S, width / 2]`, float64.

    A third of the pairs turns with the row, as many with the column, the rest with the memory
    frame, counted from `skip`: only differences count in attention.
    """
    pairs = width // 2
    shares = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    places = (range(skip, skip + frames), range(rows), range(columns))
    axes = [_angles(place, count) for place, count in zip(places, shares, strict=True)]
    grid = (frames, rows, columns)
    spread = [
        x.view(*(-1 if i == axis else 1 for i in range(3)), x.shape[1]).expand(*grid, -1)
        for axis, x in enumerate(axes)
    ]
    angles = torch.cat(spread, dim=-1).flatten(1, 2)
    return torch.stack([angles.cos(), angles.sin()])


def _angles(places: range, count: int) -> Tensor:
    speeds = BASE ** (-torch.arange(count, dtype=torch.float64) / count)
    return torch.tensor(list(places), dtype=torch.float64)[:, None] * speeds


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Return `[B, T, S, heads, d]` with its halves turned as pairs, worked out in turn's dtype.

    Args:
        x: queries or keys.
        turn: cosine and sine of each cell's angles, `[2, T, S, d / 2]`.
    """
    cos, sin = turn[:, :, :, None]
    one, two = x.to(turn.dtype).chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, one * sin + two * cos], dim=-1).to(x.dtype)


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
        self.lr = LrBranch(Conv(rate=spec.rate, hr=False), fit) if spec.lr else None
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
        """Take the next chunk; give the tokens of the blocks that it completed.

        Raises:
            ValueError: the chunk does not follow what the state has seen, or its LR latents are
                not there or not as many as must travel with it.
        """
        rate = self.spec.rate
        if self.lr and rate not in chunk.lr:
            raise ValueError(f"{part_name(self.spec)} needs LR latents of rate {rate}")
        new, run = take_blocks(state, chunk, rate.time)
        lr = self.lr.take(new, chunk, chunk.offset) if self.lr else None
        memory, windows = self._encode(run, lr, state or {})
        return {**new, **windows}, memory

    def pending(self, state: State) -> Memory:
        """Return the provisional token frame of an incomplete block, its last latent repeated."""
        run = waiting(state, self.spec.rate.time)
        lr = self.lr.rest(state, 1) if self.lr else None
        return self._encode(run, lr, state)[0]

    def _encode(self, run: Run, lr: Tensor | None, past: State) -> tuple[Memory, State]:
        """Return the memory of a run with the LR latents of its frames, and the windows after it."""
        if not run.latents.shape[2]:
            return Memory(size=run.seen), {}
        lr_tokens = self.lr.tokens(lr, run.seen) if self.lr and lr is not None else None
        if not self.hr:
            assert lr_tokens is not None  # the spec refuses both branches off
            return self._memory(lr_tokens, None, run), {}
        hidden, windows = self.hr(run.latents, run.first, past)
        tokens = out_tokens(hidden, self.hr.out.weight, self.hr.out.bias, lr_tokens)
        return self._memory(tokens, hidden, run), windows

    def _memory(self, tokens: Tensor, hidden: Tensor | None, run: Run) -> Memory:
        rate, patch = self.spec.rate, self.geometry.patch
        part = grid_part(
            part_name(self.spec), tokens, rate=rate, size=run.seen, patch=patch,
            grid=rate.token_grid(run.seen, patch), start=run.start, length=run.length,
            skip=rate.settled_tokens(run.first),
            features={"hidden": hidden} if self.spec.features and hidden is not None else None,
        )  # fmt: skip
        return Memory(parts=(part,), size=run.seen)


def part_name(spec: Transformer) -> str:
    """Return the name of the part of such an encoder."""
    return f"transformer-{spec.rate}"
