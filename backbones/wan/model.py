"""Wan as a backbone: diffusers' own model that reads memory in its self-attention."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import attrs
import torch
from diffusers import WanTransformer3DModel
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import Parameter

from ...core.interfaces.backbone import Context, VelocityCall, target_positions
from ...core.interfaces.compressor import pad_to
from ...core.values.memory import Part
from ...core.values.text import Text
from ..blocks.attention import BlockContext, KeyValue, Stream, Visibility
from ..blocks.base import Setup
from ..blocks.memory import cached_by_block
from ..blocks.rotary import RotaryAxes
from ..dit import DiT
from ..specs import DiTSpec
from .block import MemoryBlock, rotary_axes
from .specs import WanSpec

STEPS = 1000.0  # Wan counts time in thousandths


class WanBackbone(DiT, WanTransformer3DModel):  # type: ignore[misc]
    """Wan 2.x with memory. Without memory it is diffusers' model to the bit.

    Memory and targets are two streams through the same blocks, each with its own time; memory is
    dropped before the head. `full`: both attend to both, and both read the prompt, as the frames of
    one longer video would. `isolated`: memory attends to memory only and reads no prompt, at a
    constant time, so that its keys and values serve every step, both guidance branches and every
    prompt; `isolated-causal`: and to no later block of memory, so that they serve a take that
    grows, too. Targets alone read the features of a memory, after the prompt.

    `setup` must be set before the first call, as `load` does.
    """

    _no_split_modules = ["MemoryBlock"]
    _repeated_blocks = ["MemoryBlock"]
    block_lists = ("blocks",)
    # diffusers' plan names arguments of its own forward: refuse instead of splitting wrongly.
    _cp_plan = None
    diffusers_class = "WanTransformer3DModel"
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
        self.setup = Setup.of(spec, time=spec.time if isinstance(spec, WanSpec) else "sample")

    def fitted(self) -> list[Parameter]:
        """Return the parameters that `fit` copies."""
        return list(self.patch_embedding.parameters())

    def blank_text(self, batch: int, length: int) -> Text:
        """Return all-zero embeddings `[batch, length, E]` of the width that `context` reads."""
        shape = (batch, length, self.config.text_dim)
        empty = torch.zeros(shape, device=self.device, dtype=self.dtype)
        return Text(embeddings=empty, mask=empty.new_ones(shape[:2], dtype=torch.bool))

    def _memory_keys(self, new: Part, cached: list[KeyValue] | None, every: Part) -> list[KeyValue]:
        visibility = self._visibility(every, every.valid)
        return self._run_blocks(None, self._memory_stream(new, None), None, cached, visibility)[1]

    def _prepare_text(self, text: Text) -> Text:
        embeddings = text.embeddings.to(self.device, self.dtype)
        projected = self.condition_embedder.text_embedder(embeddings)
        return attrs.evolve(text, embeddings=projected)

    def _velocity(self, call: VelocityCall) -> Tensor:
        (height, width), patch = call.noisy.shape[-2:], self.geometry.patch
        noisy = pad_to(call.noisy, patch.height, patch.width).to(self.device, self.dtype)
        hidden = self.patch_embedding(noisy)  # [B, D, K, rows, columns]
        frames, rows, columns = hidden.shape[2:]
        t = call.t
        if self.setup.time == "token":
            by_frame = repeat(t, "b -> b k", k=frames) if t.ndim == 1 else t
            t = repeat(by_frame, "b k -> b (k cells)", cells=rows * columns)
        embedding, modulation = embed_time(self.condition_embedder, t, noisy)
        target = Stream(
            rearrange(hidden, "b d k h w -> b (k h w) d").contiguous(),
            modulation,
            self._rotary(target_positions(call.frames, rows, columns)),
        )
        out = self._read_context(target, call)
        out = modulate_out(out, embedding, self.scale_shift_table, self.norm_out)
        latents: Tensor = rearrange(
            self.proj_out(out), "b (k h w) (pt ph pw c) -> b c (k pt) (h ph) (w pw)",
            h=rows, w=columns, pt=patch.time, ph=patch.height, pw=patch.width,
        )  # fmt: skip
        return latents[..., :height, :width]

    def _read_context(self, target: Stream, call: VelocityCall) -> Tensor:
        """Return the targets' hidden tokens after all blocks."""
        context, memory = call.context, None
        if context.memory is not None:
            memory = self._memory_stream(context.memory, call.t)
        cached = None if context.cache is None else cached_by_block(context.cache)
        visibility = self._context_visibility(context, target.hidden.shape[1])
        return cast(Tensor, self._run_blocks(target, memory, context, cached, visibility)[0])

    def _run_blocks(
        self,
        target: Stream | None,
        memory: Stream | None,
        context: Context | None,
        cached: Sequence[KeyValue] | None,
        visibility: Visibility,
    ) -> tuple[Tensor | None, list[KeyValue]]:
        """Return the targets' hidden tokens, or without targets the memory's keys and values.

        One call a block, so that whatever hooks blocks (offload, FSDP) moves weights once.
        """
        text = context.text.embeddings if context else None
        features = context.features if context else {}
        keys_values = []
        for i, block in enumerate(self.blocks):
            last = i == len(self.blocks) - 1
            block_context = BlockContext(cached[i] if cached else None, visibility, features, last)
            outs = self._run_block(block, target, memory, text, block_context)
            target_hidden, memory_hidden, kv = outs
            if target is None:
                keys_values.append(kv)
            else:
                target = target._replace(hidden=target_hidden)
            memory = memory._replace(hidden=memory_hidden) if memory and not last else None
        return target.hidden if target else None, keys_values

    def _memory_stream(self, part: Part, t: Tensor | None) -> Stream:
        """Return a memory's tokens as they enter; `t` is the targets' time, where it is shared."""
        tokens = self._memory_tokens(part)
        if self.setup.memory_time is not None:
            t = torch.full((1,), self.setup.memory_time, device=tokens.device)
        elif t is None or t.ndim > 1:
            raise ValueError("t differs by frame, so memory cannot share it: set memory_time")
        # All memory of a sample has one time, so [B, 6, D] serves where targets have [B, N, 6, D].
        _, modulation = embed_time(self.condition_embedder, t, tokens)
        return Stream(tokens, modulation, self._rotary(*self._memory_positions(part)))

    @property
    def _rotary_axes(self) -> RotaryAxes:
        return rotary_axes(self.config.attention_head_dim)


def embed_time(embedder: Any, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embedding `[..., D]` and modulation `[..., 6, D]` of times `[B]` or `[B, N]`.

    The time half of diffusers' condition embedder, step by step as there; the other half (text)
    ran in `context`. Dtype and device are those of `like`.
    """
    # float64 as it is: 127/1000 in float32 is not 127 thousandths
    exact = t.to(torch.promote_types(t.dtype, torch.float32)) * STEPS
    steps = embedder.timesteps_proj(exact.float().to(like.device).flatten())
    steps = steps.unflatten(0, tuple(t.shape))
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
