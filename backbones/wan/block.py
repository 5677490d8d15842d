"""The transformer block of Wan with a second stream for memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from einops import rearrange
from torch import Tensor

from ...core.interfaces.backbone import Feature
from ..blocks.attention import (
    BlockContext,
    KeyValue,
    Projections,
    Stream,
    attend,
    attend_to_memory,
    concat,
)
from ..blocks.enhancer import Enhancer, enhanced
from ..blocks.rotary import RotaryAxes, rotate

THETA = 10000.0


def rotary_axes(head_width: int) -> RotaryAxes:
    """Return how Wan's heads rotate; float64, so that whole positions are `WanRotaryPosEmbed`'s."""
    side = 2 * (head_width // 6)
    return RotaryAxes(THETA, (head_width - 2 * side, side, side))


class MemoryBlock(WanTransformerBlock):  # type: ignore[misc]
    """Wan's block for two streams; same parameters, and without memory the same bits.

    Each stream has its own modulation and meets the other in self-attention only, as keys.
    """

    enhancer: Enhancer | None

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
        memory: Stream | None,
        text: Tensor | None,
        context: BlockContext,
    ) -> tuple[Tensor | None, Tensor | None, KeyValue | None]:
        """Return the hidden tokens of targets and memory, and all of the memory's keys and values.

        Args:
            target: the noisy tokens; None to run memory alone.
            memory: its tokens, those of `context.cached` left out; None where there are no more.
            text: projected prompts `[B, L, D]`, for targets (and memory, if attention is joint).
            context: what else the block reads.
        """
        visibility, out = context.visibility, None
        from_memory = None if memory is None else self._project(memory, query=not context.last)
        from_target = None if target is None else self._project(target)
        memory_kv = (
            context.cached if from_memory is None else concat(context.cached, from_memory.kv)
        )
        every = concat(memory_kv, None if from_target is None else from_target.kv)
        if from_target is not None and target is not None:
            read = attend(self.attn1, from_target.query, every, visibility.all)
            out = self._after_attention(target, from_target, read, text, context.features)
        if from_memory is None or memory is None or memory_kv is None or context.last:
            return out, None, memory_kv
        if visibility.joint:
            read = attend(self.attn1, from_memory.query, every, visibility.all)
            return out, self._after_attention(memory, from_memory, read, text), memory_kv
        read = attend_to_memory(self.attn1, from_memory.query, memory_kv, visibility)
        return out, self._after_attention(memory, from_memory, read), memory_kv

    def _project(self, stream: Stream, query: bool = True) -> Projections:
        hidden, attention = stream.hidden, self.attn1
        shift, scale, *gates = self._modulation(stream.modulation)
        x = (self.norm1(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        q = None
        if query:
            q = rotate(self._heads(attention.norm_q(attention.to_q(x))), stream.rotary)
        key = rotate(self._heads(attention.norm_k(attention.to_k(x))), stream.rotary)
        value = self._heads(attention.to_v(x))
        return Projections(q, KeyValue(key, value), tuple(gates))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads width) -> b n heads width", heads=self.attn1.heads)

    def _modulation(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Return shift, scale and gate of attention and of the feed-forward, `[B, 1 or N, D]` each.

        Args:
            modulation: one time a sample, `[B, 6, D]`; one a token, `[B, N, 6, D]` (the 5B's).
        """
        if modulation.ndim == 3:
            modulation = modulation[:, None]
        return (self.scale_shift_table + modulation.float()).unbind(dim=2)  # type: ignore[no-any-return]

    def _after_attention(
        self,
        stream: Stream,
        projections: Projections,
        read: Tensor,
        text: Tensor | None = None,
        features: Mapping[str, Feature] | None = None,
    ) -> Tensor:
        """Return the hidden tokens after the rest of the block.

        Args:
            stream: as it went in.
            projections: of the stream.
            read: what self-attention returned, `[B, N, heads, head width]`.
            text: for cross-attention; None: there is none.
            features: of a memory, for the enhancer; None: the stream reads none.
        """
        hidden = stream.hidden
        gate, ffn_shift, ffn_scale, ffn_gate = projections.gates
        project, dropout = self.attn1.to_out
        read = dropout(project(rearrange(read, "b n heads width -> b n (heads width)")))
        hidden = (hidden.float() + read * gate).type_as(hidden)
        if text is not None:
            x = self.norm2(hidden.float()).type_as(hidden)
            hidden = hidden + self.attn2(x, text, None, None)
        if features is not None:
            backend = self.attn2.processor._attention_backend
            hidden = enhanced(self.enhancer, hidden, features, backend)
        x = (self.norm3(hidden.float()) * (1 + ffn_scale) + ffn_shift).type_as(hidden)
        out: Tensor = hidden.float() + self.ffn(x).float() * ffn_gate
        return out.type_as(hidden)
