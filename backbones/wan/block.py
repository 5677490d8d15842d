"""The transformer block of Wan with a second stream for memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor

from ...core.interfaces.backbone import Feature
from ..blocks.enhancer import enhanced
from ..blocks.memory import Sight, by_block
from ..blocks.rotary import Axes, Rotary
from ..blocks.rotary import rotary as by_axes
from ..blocks.setup import Keys, beside

# ⟦backbones/wan/rotary.py⟧ Rotary embedding of Wan at real positions; at whole ones the same bits as diffusers' table.


THETA = 10000.0


def axis_widths(head_width: int) -> tuple[int, int, int]:
    """Return how many of a head's channels turn with time, row and column."""
    side = 2 * (head_width // 6)
    return head_width - 2 * side, side, side


def rotary(positions: Tensor, head_width: int, extents: Tensor | None = None) -> Rotary:
    """Return the rotary embedding of tokens at `positions`, float64 `[B, N, 3]`, fractions allowed.

    Angles, cosines and sines are float64 and rounded last, as in diffusers, so that long takes keep
    their places and whole positions equal `WanRotaryPosEmbed` to the bit. With `extents`, the mean
    over all cells that a token covers.
    """
    return by_axes(Axes(THETA, axis_widths(head_width)), positions, extents)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Return the heads `[B, N, heads, head width]` turned, in their own dtype."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = rotary
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(x)


# Tuples, not attrs: offload hooks move the tensors of tuples to the block's device.


class Stream(NamedTuple):
    """Tokens on their way through the blocks.

    Attributes:
        hidden: `[B, N, D]`.
        modulation: of their time, `[B or 1, 6, D]` or, for each token, `[B, N, 6, D]`.
        rotary: of their positions.
    """

    hidden: Tensor
    modulation: Tensor
    rotary: Rotary


class Entered(NamedTuple):
    """A stream at the door of attention; `gates` are the six modulation values."""

    query: Tensor | None
    keys: Keys
    gates: tuple[Tensor, ...]


class MemoryBlock(WanTransformerBlock):  # type: ignore[misc]
    """Wan's block for two streams; same parameters, and without memory the same bits.

    Each stream has its own modulation and meets the other in self-attention only, as keys.
    """

    @classmethod
    def of(cls, config: Any) -> MemoryBlock:
        """Return a block of the model that a diffusers config describes."""
        return cls(
            config.num_attention_heads * config.attention_head_dim,
            config.ffn_dim,
            config.num_attention_heads,
            config.qk_norm,
            config.cross_attn_norm,
            config.eps,
            config.added_kv_proj_dim,
        )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_module("enhancer", None)

    def forward(
        self,
        target: Stream | None,
        memory: Stream | None = None,
        text: Tensor | None = None,
        features: Mapping[str, Feature] | None = None,
        past: Keys | None = None,
        sight: Sight | None = None,
        last: bool = False,
    ) -> tuple[Tensor | None, Tensor | None, Keys | None]:
        """Return the hidden tokens of targets and memory, and the memory's keys.

        Args:
            target: the noisy tokens; None to run memory alone.
            memory: its tokens, those of `past` left out; None where there are no more.
            text: projected prompts `[B, L, D]`, for targets (and memory, if it sees them).
            features: of the memory, for targets.
            past: keys and values of memory in this block, from a cache.
            sight: who sees whom; None: memory sees memory alone, and all keys are real.
            last: no block follows, so memory's hidden tokens are not made (None).
        """
        sight = sight or Sight()
        own = None if memory is None else self._enter(memory, ask=not last)
        new = None if target is None else self._enter(target)
        kept = past if own is None else beside(past, own.keys)
        seen = beside(kept, None if new is None else new.keys)
        masks, out = sight.masks, None
        every = None if masks is None else masks.all
        if new is not None and target is not None:
            read = self._attend(new, seen, every)
            out = self._leave(target, new, read, text, features or {})
        if own is None or memory is None or kept is None or last:
            return out, None, kept
        if sight.joint:
            return out, self._leave(memory, own, self._attend(own, seen, every), text), kept
        return out, self._leave(memory, own, self._recall(own, kept, sight)), kept

    def _enter(self, stream: Stream, ask: bool = True) -> Entered:
        hidden = stream.hidden
        gates = self._gates(stream.modulation)
        shift, scale = gates[:2]
        x = (self.norm1(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        heads = (self.attn1.heads, -1)
        query = None
        if ask:
            query = self.attn1.norm_q(self.attn1.to_q(x)).unflatten(2, heads)
            query = rotate(query, stream.rotary)
        key = self.attn1.norm_k(self.attn1.to_k(x)).unflatten(2, heads)
        value = self.attn1.to_v(x).unflatten(2, heads)
        return Entered(query, Keys(rotate(key, stream.rotary), value), gates)

    def _gates(self, modulation: Tensor) -> tuple[Tensor, ...]:
        # One time a sample: [B, 6, D]; one a token: [B, N, 6, D] (the 5B's pipeline).
        if modulation.ndim == 3:
            return (self.scale_shift_table + modulation.float()).chunk(6, dim=1)  # type: ignore[no-any-return]
        parts = (self.scale_shift_table.unsqueeze(0) + modulation.float()).chunk(6, dim=2)
        return tuple(part.squeeze(2) for part in parts)

    def _leave(
        self,
        stream: Stream,
        entered: Entered,
        read: Tensor,
        text: Tensor | None = None,
        features: Mapping[str, Feature] | None = None,
    ) -> Tensor:
        hidden = stream.hidden
        _, _, gate, c_shift, c_scale, c_gate = entered.gates
        project, dropout = self.attn1.to_out
        read = dropout(project(read.flatten(2, 3)))
        hidden = (hidden.float() + read * gate).type_as(hidden)
        if text is not None:
            x = self.norm2(hidden.float()).type_as(hidden)
            hidden = hidden + self.attn2(x, text, None, None)
        if features is not None:
            backend = self.attn2.processor._attention_backend
            hidden = enhanced(self.enhancer, hidden, features, backend)
        x = (self.norm3(hidden.float()) * (1 + c_scale) + c_shift).type_as(hidden)
        out: Tensor = hidden.float() + self.ffn(x).float() * c_gate
        return out.type_as(hidden)

    def _recall(self, own: Entered, kept: Keys, sight: Sight) -> Tensor:
        """Return what memory reads of memory."""
        if sight.groups is not None:
            return by_block(self._dispatch, _asked(own), kept, sight.groups)
        return self._attend(own, kept, None if sight.masks is None else sight.masks.memory)

    def _attend(self, entered: Entered, seen: Keys, mask: Tensor | None) -> Tensor:
        return self._dispatch(_asked(entered), seen, mask)

    def _dispatch(self, query: Tensor, seen: Keys, mask: Tensor | None = None) -> Tensor:
        # The processor only tells which backend the user chose; nothing is ever kept on it.
        processor = self.attn1.processor
        out: Tensor = dispatch_attention_fn(
            query,
            seen.key,
            seen.value,
            attn_mask=mask,
            dropout_p=0.0,
            is_causal=False,
            backend=processor._attention_backend,
            parallel_config=processor._parallel_config,
        )
        return out.type_as(query)


def _asked(entered: Entered) -> Tensor:
    assert entered.query is not None, "only the last block's memory asks nothing"
    return entered.query
