"""The transformer block of Wan with a second stream for memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from torch import Tensor

from ...core.interfaces.backbone import Feature
from ..blocks.attention import Projections, Stream
from ..blocks.rotary import RotaryAxes
from ..two_stream import TwoStreamBlock, join_heads, project_heads

THETA = 10000.0


def rotary_axes(head_width: int) -> RotaryAxes:
    """Return how Wan's heads rotate; float64, so that whole positions are `WanRotaryPosEmbed`'s."""
    side = 2 * (head_width // 6)
    return RotaryAxes(THETA, (head_width - 2 * side, side, side))


class MemoryBlock(TwoStreamBlock, WanTransformerBlock):  # type: ignore[misc]
    """Wan's block for two streams; same parameters, and without memory the same bits."""

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

    def project(self, stream: Stream, query: bool = True) -> Projections:
        """Return what self-attention reads of a stream."""
        hidden = stream.hidden
        shift, scale, *gates = self._modulation(stream.modulation)
        x = (self.norm1(hidden.float()) * (1 + scale)).add_(shift).type_as(hidden)
        return project_heads(self.attn1, x, stream, gates, query)

    def _modulation(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Return shift, scale and gate of attention and of the feed-forward, `[B, 1 or N, D]` each.

        Args:
            modulation: one time a sample, `[B, 6, D]`; one a token, `[B, N, 6, D]` (the 5B's).
        """
        if modulation.ndim == 3:
            modulation = modulation[:, None]
        return (self.scale_shift_table + modulation.float()).unbind(dim=2)  # type: ignore[no-any-return]

    def after_attention(
        self,
        stream: Stream,
        projections: Projections,
        read: Tensor,
        text: Tensor | None = None,
        features: Mapping[str, Feature] | None = None,
    ) -> Tensor:
        """Return the hidden tokens after the rest of the block."""
        hidden = stream.hidden
        gate, ffn_shift, ffn_scale, ffn_gate = projections.gates
        hidden = (join_heads(self.attn1, read) * gate).add_(hidden.float()).type_as(hidden)
        if text is not None:
            x = self.norm2(hidden.float()).type_as(hidden)
            hidden = hidden + self.attn2(x, text, None, None)
        hidden = self.read_features(hidden, features, self.attn2)
        x = (self.norm3(hidden.float()) * (1 + ffn_scale)).add_(ffn_shift).type_as(hidden)
        out: Tensor = (self.ffn(x).float() * ffn_gate).add_(hidden.float())
        return out.type_as(hidden)
