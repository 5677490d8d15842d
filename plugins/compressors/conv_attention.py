"""Attention over memory frames: block-causal in a window (exact to append), or full."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..specs import Conv


class FrameAttention(nn.Module):
    """One layer: x + out(attention(qkv(norm(x)))), the frames of a window seen as a whole."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        # Softmax cancels a bias of keys: it would be a parameter that never moves.
        self.qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.out = nn.Linear(heads * head_width, width)

    def forward(
        self, x: Tensor, past: Tensor | None, window: int | None, keys: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Give new features of frames, and the keys and values to go on from.

        Args:
            x: `[B, T, S, C]`: T frames of S cells.
            past: keys and values `[2, B, n, S, heads, d]` of the n ≤ window − 1 frames before.
            window: frames that a frame sees, itself the last of them; None: all, also later ones.
            keys: which frames are real, `[B, T]`; only for window None, None: all are.
        """
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(3)
        if window is None:
            seen, kept = full(query, key, value, keys), key.new_zeros(0)
        else:
            pair = torch.stack([key, value])
            pair = pair if past is None else torch.cat([past, pair], dim=2)
            seen = windowed(query, pair[0], pair[1], window)
            kept = pair[:, :, max(pair.shape[2] - window + 1, 0) :]
            kept = kept.clone(memory_format=torch.contiguous_format)
        return x + self.out(seen.flatten(-2)), kept


class AttentionStack(nn.Module):
    """The attention layers of an encoder; the state holds a window's keys and values a layer."""

    def __init__(self, spec: Conv) -> None:
        super().__init__()
        self.window = None if spec.attention == "full" else spec.window
        count = 0 if spec.attention == "none" else spec.layers
        self.layers = nn.ModuleList(
            FrameAttention(spec.channels[-1], spec.heads, spec.head_width) for _ in range(count)
        )

    def forward(
        self, x: Tensor, past: Mapping[str, Tensor], keys: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give features `[B, T, S, C]` of new frames, and the state to go on from."""
        state: dict[str, Tensor] = {}
        for index, layer in enumerate(self.layers):
            name = f"attention.{index}"
            x, state[name] = layer(x, past.get(name), self.window, keys)
        return x, {} if self.window is None else state


def full(query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None) -> Tensor:
    """Give attention of all cells on all cells, `[B, T, S, heads, d]`.

    Args:
        query: `[B, T, S, heads, d]`, as key and value.
        key: see query.
        value: see query.
        keys: real frames `[B, T]`; a sample with none sees all, so that its padding stays finite.
    """
    mask = None
    if keys is not None:
        open_ = (keys | ~keys.any(dim=1, keepdim=True)).to(query.device)
        mask = open_.repeat_interleave(query.shape[2], dim=1)[:, None, None]  # [B, 1, 1, T·S]
    q, k, v = (x.flatten(1, 2) for x in (query, key, value))
    return _attend(q, k, v, mask).reshape(query.shape)


def windowed(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """Give attention in which each frame sees `window` frames, itself the last, without a mask.

    Frames with fewer before them go one by one, the others as one batch.

    Args:
        query: of the new frames, `[B, T, S, heads, d]`.
        key: of n frames before them and of the new ones, `[B, n + T, S, heads, d]`.
        value: as key.
        window: ≥ 1.
    """
    new, before = query.shape[1], key.shape[1] - query.shape[1]
    short = min(max(window - 1 - before, 0), new)
    parts = []
    for i in range(short):
        last = before + i + 1
        past = [x[:, :last].flatten(1, 2) for x in (key, value)]
        parts.append(_attend(query[:, i], *past)[:, None])
    if short < new:
        parts.append(_batched(query[:, short:], key, value, window))
    return torch.cat(parts, dim=1)


def _batched(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    def gather(x: Tensor) -> Tensor:
        spans = x[:, x.shape[1] - query.shape[1] - window + 1 :].unfold(1, window, 1)
        return spans.movedim(-1, 2).flatten(2, 3).flatten(0, 1)  # [B·T, window·S, heads, d]

    seen = _attend(query.flatten(0, 1), gather(key), gather(value))
    return seen.reshape(query.shape)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Give attention of `[B, L, heads, d]` on `[B, M, heads, d]`."""
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
