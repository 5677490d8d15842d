"""Wan as a backbone: diffusers' own model that reads memory in its self-attention."""

from __future__ import annotations

import functools
from typing import Any, cast

import attrs
import torch
from diffusers import WanTransformer3DModel
from einops import rearrange
from torch import Tensor, nn

from ...core.values.text import Text
from ..blocks.base import Setup
from ..blocks.rotary import RotaryAxes
from ..specs import DiTSpec
from ..two_stream import TwoStreamDiT
from .block import MemoryBlock, rotary_axes
from .specs import WanSpec


class WanBackbone(TwoStreamDiT, WanTransformer3DModel):  # type: ignore[misc]
    """Wan 2.x with memory (`TwoStreamDiT`). Without memory it is diffusers' model to the bit."""

    block_class = MemoryBlock
    block_lists = ("blocks",)
    diffusers_class = "WanTransformer3DModel"
    out_order = "pt ph pw c"
    linears = {
        "attention": ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0"),
        "cross-attention": ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"),
        "feed-forward": ("ffn.net.0.proj", "ffn.net.2"),
    }

    # `wraps` keeps diffusers' signature, which its config loader reads.
    @functools.wraps(WanTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.blocks = nn.ModuleList(
            MemoryBlock.of(self.config) for _ in range(self.config.num_layers)
        )

    def set_up(self, spec: DiTSpec) -> None:
        """Set what a spec says of how memory and time enter."""
        super().set_up(spec)
        self.setup = Setup.of(spec, time=spec.time if isinstance(spec, WanSpec) else "sample")

    @property
    def first_projection(self) -> nn.Module:
        """The convolution that makes tokens of latents."""
        return cast(nn.Module, self.patch_embedding)

    @property
    def text_width(self) -> int:
        """Width of the text embeddings."""
        return int(self.config.text_dim)

    def embed_time(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embedding `[..., D]` and modulation `[..., 6, D]` of times."""
        return embed_time(self.condition_embedder, self.in_steps(t), like)

    def project_out(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        """Return the velocity's patches."""
        out = modulate_out(hidden, embedding, self.scale_shift_table, self.norm_out)
        return cast(Tensor, self.proj_out(out))

    def _prepare_text(self, text: Text) -> Text:
        embeddings = text.embeddings.to(self.device, self.dtype)
        projected = self.condition_embedder.text_embedder(embeddings)
        return attrs.evolve(text, embeddings=projected)

    @property
    def _rotary_axes(self) -> RotaryAxes:
        return rotary_axes(self.config.attention_head_dim)


def embed_time(embedder: Any, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embedding `[..., D]` and modulation `[..., 6, D]` of times `[B]` or `[B, N]`.

    They are given in thousandths, float32.

    The time half of diffusers' condition embedder, step by step as there; the other half (text)
    ran in `context`. Dtype and device are those of `like`.
    """
    steps = embedder.timesteps_proj(times.to(like.device).flatten())
    steps = steps.unflatten(0, tuple(times.shape))
    dtype = next(iter(embedder.time_embedder.parameters())).dtype
    if steps.dtype != dtype and dtype != torch.int8:
        steps = steps.to(dtype)
    embedding = embedder.time_embedder(steps).type_as(like)
    modulation = embedder.time_proj(embedder.act_fn(embedding))
    return embedding, rearrange(modulation, "... (six d) -> ... six d", six=6)


def modulate_out(hidden: Tensor, embedding: Tensor, table: Tensor, norm: nn.Module) -> Tensor:
    """Return the tokens `[B, N, D]` as the last projection reads them.

    Args:
        hidden: `[B, N, D]`.
        embedding: of time, `[B, D]` or `[B, N, D]`.
        table: the model's own shift and scale, `[1, 2, D]`.
        norm: the model's last.
    """
    if embedding.ndim == 2:
        embedding = embedding[:, None]
    both = table.to(embedding.device) + embedding[:, :, None]  # [B, 1 or N, 2, D]
    shift, scale = both.to(hidden.device).unbind(dim=2)
    out: Tensor = norm(hidden.float()) * (1 + scale) + shift
    return out.type_as(hidden)
