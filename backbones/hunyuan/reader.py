"""How the models of HunyuanVideo's family read memory: what they share, whatever their class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ...core.backbone import target_positions
from ...core.calls import VelocityCall
from ...core.fit import pad_to
from ...core.memory import Part
from ...core.text import Text
from ..dit.causal import groups_of
from ..dit.model import DiT
from ..dit.rotary import Rotary, rotary
from ..dit.setup import Keys, check_call, pairs
from . import ends
from .attend import Stream, View
from .block import DualBlock, SingleBlock, blocks_of
from .rotary import axes_of
from .run import Run, run_blocks


class HunyuanReader(DiT):
    """HunyuanVideo with memory. Without memory it is diffusers' model to the bit.

    Prompts are cut to their real tokens (`ends.packed`): on prompts that fill their length, or are
    cut already, no number differs from diffusers'; on padded ones the last bits do.

    Memory goes through the weights of latents in both kinds of blocks, and is dropped before the
    head. `full`: it stands before the targets and sees everything, as the frames of one longer
    video would. Where its time is its own, it is modulated by that time and the prompt, guidance
    left out, as the clean first frame of diffusers' `token_replace` models. `isolated`: it sees
    memory only, under a constant modulation: its time, an all-zero pooled prompt and no guidance,
    so that its keys and values serve every step, both guidance branches and every prompt. Zeros,
    because any other constant would be a vector of one text encoder's.

    Attributes:
        guidance: the scale that the model was distilled on, None where it knows none; set by
            whoever builds the model.
    """

    _no_split_modules = ["DualBlock", "SingleBlock"]
    _repeated_blocks = ["DualBlock", "SingleBlock"]
    # diffusers' plan names arguments of its own forward: refuse instead of splitting wrongly.
    _cp_plan = None
    block_lists = ("transformer_blocks", "single_transformer_blocks")
    # `cross-attention` is the text's side of attention where it stands beside latents
    linears = {
        "attention": ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        "cross-attention": (
            "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
        ),
        "feed-forward": (
            "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
            "proj_mlp", "proj_out",
        ),
    }  # fmt: skip
    guidance: float | None = None

    def _use_memory_blocks(self) -> None:
        config = self.config
        self.transformer_blocks = nn.ModuleList(blocks_of(DualBlock, config, config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            blocks_of(SingleBlock, config, config.num_single_layers)
        )

    def fitted(self) -> list[Parameter]:
        """Give the parameters that `fit` copies."""
        return list(self.x_embedder.proj.parameters())

    def blank_text(self, batch: int, length: int) -> Text:
        """Give empty embeddings `[batch, length, E]` and pooled vectors of the widths read."""
        shape = (batch, length, self.config.text_embed_dim)
        empty = torch.zeros(shape, device=self.device, dtype=self.dtype)
        pooled = empty.new_zeros(batch, self.config.pooled_projection_dim)
        mask = empty.new_ones(shape[:2], dtype=torch.bool)
        return Text(embeddings=empty, mask=mask, pooled=pooled)

    def _memory_keys(self, new: Part, past: list[Keys] | None, every: Part) -> list[Keys]:
        stream = self._memory_stream(new, None, None)
        view = ends.view_of(self._view(every), every.valid.to(self.device), 0, None)
        return run_blocks(self, Run(None, None, stream), past, view, {})[1]

    def _read_text(self, text: Text) -> Text:
        return ends.packed(text.to(self.device, self.dtype))

    def _velocity(self, call: VelocityCall) -> Tensor:
        check_call(call, self.setup.time)
        patch, (height, width) = self.geometry.patch, call.noisy.shape[-2:]
        cells = (patch.time, patch.height, patch.width)
        noisy = pad_to(call.noisy, patch.height, patch.width).to(self.device, self.dtype)
        grid = tuple(size // cell for size, cell in zip(noisy.shape[2:], cells, strict=True))
        t, pooled = call.t.to(self.device), _pooled(call.context.text)
        time = ends.embed_time(self.time_text_embed, t, pooled, self.guidance)
        turns = self._turns(target_positions(call.frames, grid[1], grid[2]))
        out = self._read(Stream(self.x_embedder(noisy), time, turns), call)
        tokens = self.proj_out(self.norm_out(out, time))
        return ends.unpatchify(tokens, grid, cells)[..., :height, :width]

    def _read(self, target: Stream, call: VelocityCall) -> Tensor:
        context, memory = call.context, None
        words, mask = self._words(context.text, call.t.to(self.device))
        held = context.cache or context.memory
        valid = None if held is None or not held.valid.shape[1] else held.valid.to(self.device)
        view = ends.view_of(self._view(context.memory), valid, target.hidden.shape[1], mask)
        if context.memory is not None:
            memory = self._memory_stream(context.memory, target, _pooled(context.text))
        past = pairs(context.cache) if context.cache else None
        out, _ = run_blocks(self, Run(target, words, memory), past, view, context.features)
        assert out is not None, "targets went in"
        return out

    def _words(self, text: Text, t: Tensor) -> tuple[Tensor, Tensor]:
        """Give the text as the blocks read it `[B, L, D]`, and which of it is real `[B, L]`."""
        return self.context_embedder(text.embeddings, t.float() * ends.STEPS, text.mask), text.mask

    def _view(self, memory: Part | None) -> View:
        """Give who sees whom where a memory of these tokens goes through, all of them real."""
        if memory is None or self.setup.attention != "isolated-causal":
            return View(joint=self.setup.joint)
        return View(groups=groups_of(memory, self.setup.cache_block))

    def _memory_stream(self, part: Part, target: Stream | None, pooled: Tensor | None) -> Stream:
        tokens, places = self._memory_tokens(part), self._memory_places(part)
        return Stream(tokens, self._memory_modulation(target, pooled), self._turns(*places))

    def _memory_modulation(self, target: Stream | None, pooled: Tensor | None) -> Tensor:
        if self.setup.memory_time is None:
            assert target is not None, "specs refuse isolated memory at a shared time"
            return target.time
        if pooled is None or not self.setup.joint:
            shape = (1, self.config.pooled_projection_dim)
            pooled = torch.zeros(shape, device=self.device, dtype=self.dtype)
        t = torch.full((1,), self.setup.memory_time, device=self.device)
        return ends.embed_clean(self.time_text_embed, t, pooled)

    def _turns(self, positions: Tensor, extents: Tensor | None = None) -> Rotary:
        turns = rotary(axes_of(self.config), positions, extents)
        device = self.device  # asked once: diffusers looks through all modules for it
        return Rotary(*(x.to(device) for x in turns))


def _pooled(text: Text) -> Tensor:
    assert text.pooled is not None, "context has checked it"
    return text.pooled
