"""Wan as a backbone: diffusers' own model that reads memory in its self-attention."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import attrs
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor, nn
from torch.nn import Parameter

from ...core.interfaces.backbone import Context, VelocityCall, target_positions
from ...core.interfaces.compressor import pad_to
from ...core.values.memory import Part
from ...core.values.text import Text
from ..blocks.memory import Sight
from ..blocks.rotary import Rotary
from ..blocks.setup import Keys, Setup, check_call, pairs, through
from ..dit import DiT
from ..specs import DiTSpec
from .block import MemoryBlock, Stream, rotary
from .specs import WanSpec

# ⟦backbones/wan/ends.py⟧ What happens before and after Wan's blocks: time, masks and the head, without any state.


STEPS = 1000.0  # Wan counts time in thousandths


def each_token(t: Tensor, frames: int, cells: int) -> Tensor:
    """Return the time of each target token `[B, frames · cells]` of times `[B]` or `[B, frames]`."""
    by_frame = t[:, None].expand(-1, frames) if t.ndim == 1 else t
    return by_frame[:, :, None].expand(-1, -1, cells).flatten(1)


def embed_time(embedder: Any, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return temb `[..., D]` and modulation `[..., 6, D]` of times `[B]` or `[B, N]`.

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
    temb = embedder.time_embedder(steps).type_as(like)
    return temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(-1, (6, -1))


def modulate_out(hidden: Tensor, temb: Tensor, table: Tensor, norm: nn.Module) -> Tensor:
    """Return the tokens as the last projection reads them; temb is `[B, D]` or `[B, N, D]`."""
    table = table.to(temb.device)
    if temb.ndim == 3:
        parts = (table.unsqueeze(0) + temb.unsqueeze(2)).chunk(2, dim=2)
        shift, scale = (part.squeeze(2).to(hidden.device) for part in parts)
    else:
        parts = (table + temb.unsqueeze(1)).chunk(2, dim=1)
        shift, scale = (part.to(hidden.device) for part in parts)
    out: Tensor = norm(hidden.float()) * (1 + scale) + shift
    return out.type_as(hidden)


def unpatchify(tokens: Tensor, grid: torch.Size, patch: tuple[int, int, int]) -> Tensor:
    """Return latents `[B, C, T, H, W]` of the tokens of a grid (time, rows, columns)."""
    cells = tokens.reshape(tokens.shape[0], *grid, *patch, -1)
    return cells.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class Wan(DiT, WanTransformer3DModel):  # type: ignore[misc]
    """Wan 2.x with memory. Without memory it is diffusers' model to the bit.

    Memory and targets are two streams through the same blocks, each with its own time; memory is
    dropped before the head. `full`: both see both, and both read the prompt, as the frames of one
    longer video would. `isolated`: memory sees memory only and no prompt, at a constant time, so
    that its keys and values serve every step, both guidance branches and every prompt;
    `isolated-causal`: and no later block of memory, so that they serve a take that grows, too.
    Targets alone read the features of a memory, after the prompt.

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
        """Keep what a spec says of how memory and time enter."""
        self.setup = Setup.of(spec, time=spec.time if isinstance(spec, WanSpec) else "sample")

    def fitted(self) -> list[Parameter]:
        """Return the parameters that `fit` copies."""
        return list(self.patch_embedding.parameters())

    def blank_text(self, batch: int, length: int) -> Text:
        """Return empty embeddings `[batch, length, E]` of the width that `context` reads."""
        shape = (batch, length, self.config.text_dim)
        empty = torch.zeros(shape, device=self.device, dtype=self.dtype)
        return Text(embeddings=empty, mask=empty.new_ones(shape[:2], dtype=torch.bool))

    def _memory_keys(self, new: Part, past: list[Keys] | None, every: Part) -> list[Keys]:
        sight = self._sight(every.valid, 0, every)
        return self._run(None, self._memory_stream(new, None), None, past, sight)[1]

    def _read_text(self, text: Text) -> Text:
        embeddings = text.embeddings.to(self.device, self.dtype)
        projected = self.condition_embedder.text_embedder(embeddings)
        return attrs.evolve(text, embeddings=projected)

    def _velocity(self, call: VelocityCall) -> Tensor:
        check_call(call, self.setup.time)
        patch, (height, width) = self.geometry.patch, call.noisy.shape[-2:]
        noisy = pad_to(call.noisy, patch.height, patch.width).to(self.device, self.dtype)
        hidden = self.patch_embedding(noisy)
        grid = hidden.shape[2:]
        hidden = hidden.flatten(2).transpose(1, 2).contiguous()  # [B, N, D]
        by_token = self.setup.time == "token"
        t = each_token(call.t, grid[0], grid[1] * grid[2]) if by_token else call.t
        temb, modulation = embed_time(self.condition_embedder, t, noisy)
        turns = self._rotary(target_positions(call.frames, grid[1], grid[2]))
        out = self._read(Stream(hidden, modulation, turns), call)
        out = modulate_out(out, temb, self.scale_shift_table, self.norm_out)
        latents = unpatchify(self.proj_out(out), grid, self.config.patch_size)
        return latents[..., :height, :width]

    def _read(self, target: Stream, call: VelocityCall) -> Tensor:
        context, memory = call.context, None
        if context.memory is not None:
            memory = self._memory_stream(context.memory, call.t)
        held = context.cache or context.memory
        valid = None if held is None else held.valid
        sight = self._sight(valid, target.hidden.shape[1], context.memory)
        past = None if context.cache is None else pairs(context.cache)
        return cast(Tensor, self._run(target, memory, context, past, sight)[0])

    def _run(
        self,
        target: Stream | None,
        memory: Stream | None,
        context: Context | None,
        past: Sequence[Keys] | None,
        sight: Sight,
    ) -> tuple[Tensor | None, list[Keys]]:
        # One call a block, so that whatever hooks blocks (offload, FSDP) moves weights once.
        text, features = (context.text.embeddings, context.features) if context else (None, None)
        kept = []
        for i, block in enumerate(self.blocks):
            cached, last = past[i] if past else None, i == len(self.blocks) - 1
            given = (target, memory, text, features, cached, sight, last)
            out, own, keys = through(self, block, *given)
            if target is None:
                kept.append(keys)
            else:
                target = target._replace(hidden=out)
            memory = memory._replace(hidden=own) if memory and not last else None
        return target.hidden if target else None, kept

    def _memory_stream(self, part: Part, t: Tensor | None) -> Stream:
        tokens = self._memory_tokens(part)
        t = self._memory_time(t, tokens.device)
        # All memory of a sample has one time, so [B, 6, D] serves where targets have [B, N, 6, D].
        _, modulation = embed_time(self.condition_embedder, t, tokens)
        return Stream(tokens, modulation, self._rotary(*self._memory_places(part)))

    def _rotary(self, positions: Tensor, extents: Tensor | None = None) -> Rotary:
        turns = rotary(positions, self.config.attention_head_dim, extents)
        device = self.device  # asked once: diffusers looks through all modules for it
        return Rotary(*(x.to(device) for x in turns))
