"""The transformer blocks of HunyuanVideo with a stream for memory, in both their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
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
from ..blocks.rotary import RotaryTable, rotate


class DualBlock(HunyuanVideoTransformerBlock):  # type: ignore[misc]
    """HunyuanVideo's block for latents beside text, with memory as a second stream of latents.

    Same parameters as diffusers' block, and without memory the same bits. Memory goes through the
    weights of latents under a modulation of its own, and meets the others in attention only.
    """

    enhancer: Enhancer | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_module("enhancer", None)

    def forward(
        self,
        target: Stream | None,
        text: Tensor | None,
        memory: Stream | None,
        context: BlockContext,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, KeyValue | None]:
        """Return the hidden tokens of targets, text and memory, and all the memory's keys, values.

        Args:
            target: the noisy tokens; None (and no text) to run memory alone.
            text: refined prompts `[B, L, D]`, under the modulation of the targets.
            memory: its tokens; None where there is none, or where `context.cached` stands for them.
            context: what else the block reads.
        """
        from_memory = None if memory is None else self._project_memory(memory, context)
        if target is None or text is None:
            _, read, kv = _attention(self.attn, None, from_memory, context)
            return None, None, self._memory_out(memory, from_memory, read), kv
        from_target, from_text = self._project(target), self._project_text(text, target.modulation)
        both, read, kv = _attention(
            self.attn, _behind(from_target, from_text), from_memory, context
        )
        target_read, text_read = _split(both, target.hidden.shape[1], copy=kv is not None)
        target_out = self._target_out(target.hidden, target_read, from_target.gates)
        target_out = enhanced(
            self.enhancer, target_out, context.features, self.attn.processor._attention_backend
        )
        text_out = self._text_out(text, text_read, from_text.gates)
        return target_out, text_out, self._memory_out(memory, from_memory, read), kv

    def _project(self, stream: Stream) -> Projections:
        x, *gates = self.norm1(stream.hidden, emb=stream.modulation)
        return _project_latents(self.attn, x, stream.rotary, gates)

    def _project_memory(self, memory: Stream, context: BlockContext) -> Projections:
        x, *gates = self.norm1(memory.hidden, emb=memory.modulation)
        return _project_memory(self.attn, x, memory.rotary, gates, context)

    def _project_text(self, text: Tensor, modulation: Tensor) -> Projections:
        x, *gates = self.norm1_context(text, emb=modulation)
        attention = self.attn  # text has no position
        query = attention.norm_added_q(_heads(attention, attention.add_q_proj(x)))
        key = attention.norm_added_k(_heads(attention, attention.add_k_proj(x)))
        value = _heads(attention, attention.add_v_proj(x))
        return Projections(query, KeyValue(key, value), tuple(gates))

    def _target_out(self, hidden: Tensor, read: Tensor, gates: tuple[Tensor, ...]) -> Tensor:
        """Return hidden tokens of latents after attention `[B, N, D]` and the feed-forward."""
        gate, shift, scale, mlp_gate = gates
        project, dropout = self.attn.to_out
        hidden = hidden + dropout(project(read)) * gate[:, None]
        x = self.norm2(hidden) * (1 + scale[:, None]) + shift[:, None]
        out: Tensor = hidden + mlp_gate[:, None] * self.ff(x)
        return out

    def _text_out(self, text: Tensor, read: Tensor, gates: tuple[Tensor, ...]) -> Tensor:
        gate, shift, scale, mlp_gate = gates
        text = text + self.attn.to_add_out(read) * gate[:, None]
        x = self.norm2_context(text) * (1 + scale[:, None]) + shift[:, None]
        out: Tensor = text + mlp_gate[:, None] * self.ff_context(x)
        return out

    def _memory_out(
        self, memory: Stream | None, projections: Projections | None, read: Tensor | None
    ) -> Tensor | None:
        if memory is None or projections is None or read is None:
            return None
        return self._target_out(memory.hidden, read, projections.gates)


def _behind(target: Projections, text: Projections) -> Projections:
    """Return the projections of targets, and of text behind them."""
    assert target.query is not None and text.query is not None, "both have queries"
    return Projections(torch.cat([target.query, text.query], dim=1), concat(target.kv, text.kv))


def _split(read: Tensor | None, count: int, copy: bool) -> tuple[Tensor, Tensor]:
    """Return what `count` targets read, and what text read; `copy`: as tensors of their own.

    Linears round by the strides of their input: without a memory these are slices, as in diffusers.
    A slice's bits also differ between frozen weights and others, so with a memory, where no model
    of diffusers' must be equalled, they are copied.
    """
    assert read is not None, "targets read"
    parts = read[:, :count], read[:, count:]
    return (parts[0].contiguous(), parts[1].contiguous()) if copy else parts


class SingleBlock(HunyuanVideoSingleTransformerBlock):  # type: ignore[misc]
    """HunyuanVideo's block for latents and text as one sequence, with a stream for memory.

    Same parameters as diffusers' block, and without memory the same bits.
    """

    enhancer: Enhancer | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_module("enhancer", None)

    def forward(
        self, main: Stream | None, memory: Stream | None, context: BlockContext
    ) -> tuple[Tensor | None, Tensor | None, KeyValue | None]:
        """Return the hidden tokens of `main` and memory, and all of the memory's keys and values.

        Args:
            main: targets and text behind them; None to run memory alone.
            memory: as in `DualBlock`.
            context: what else the block reads.
        """
        from_memory = None if memory is None else self._project_memory(memory, context)
        from_main = None if main is None else self._project(main)
        main_read, memory_read, kv = _attention(self.attn, from_main, from_memory, context)
        main_out = self._enhance(main, self._out(main, from_main, main_read), context.features)
        return main_out, self._out(memory, from_memory, memory_read), kv

    def _project(self, stream: Stream) -> Projections:
        x, gate = self.norm(stream.hidden, emb=stream.modulation)
        return _project_latents(self.attn, x, stream.rotary, [gate, self._mlp(x)])

    def _project_memory(self, memory: Stream, context: BlockContext) -> Projections:
        x, gate = self.norm(memory.hidden, emb=memory.modulation)
        gates = [gate] if context.last else [gate, self._mlp(x)]
        return _project_memory(self.attn, x, memory.rotary, gates, context)

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.act_mlp(self.proj_mlp(x))
        return out

    def _out(
        self, stream: Stream | None, projections: Projections | None, read: Tensor | None
    ) -> Tensor | None:
        if stream is None or projections is None or read is None:
            return None
        gate, mlp = projections.gates  # the feed-forward runs beside attention, not behind it
        out: Tensor = gate[:, None] * self.proj_out(torch.cat([read, mlp], dim=2))
        return out + stream.hidden

    def _enhance(
        self, main: Stream | None, out: Tensor | None, features: Mapping[str, Feature]
    ) -> Tensor | None:
        if main is None or out is None or self.enhancer is None:
            return out
        count, backend = main.rotary.cos.shape[1], self.attn.processor._attention_backend
        targets = enhanced(self.enhancer, out[:, :count], features, backend)
        return torch.cat([targets, out[:, count:]], dim=1)


def _project_latents(
    attention: Any, x: Tensor, rotary: RotaryTable, gates: list[Tensor]
) -> Projections:
    """Return the projections of modulated latents `[B, N, D]`, and of text behind them."""
    query = _rotate_latents(_queries(attention, x), rotary)
    key = _rotate_latents(_keys(attention, x), rotary)
    value = _heads(attention, attention.to_v(x))
    return Projections(query, KeyValue(key, value), tuple(gates))


def _project_memory(
    attention: Any, x: Tensor, rotary: RotaryTable, gates: list[Tensor], context: BlockContext
) -> Projections:
    """Return the projections of modulated memory `[B, N, D]`.

    Without queries in the last block; keys are not rotated where that is left to their readers.
    """
    query = None if context.last else _rotate_latents(_queries(attention, x), rotary)
    key = _keys(attention, x)
    if context.rotary is None:
        key = _rotate_latents(key, rotary)
    value = _heads(attention, attention.to_v(x))
    return Projections(query, KeyValue(key, value), tuple(gates))


def _queries(attention: Any, x: Tensor) -> Tensor:
    heads: Tensor = attention.norm_q(_heads(attention, attention.to_q(x)))
    return heads


def _keys(attention: Any, x: Tensor) -> Tensor:
    heads: Tensor = attention.norm_k(_heads(attention, attention.to_k(x)))
    return heads


def _heads(attention: Any, x: Tensor) -> Tensor:
    return rearrange(x, "b n (heads width) -> b n heads width", heads=attention.heads)


def _rotate_latents(heads: Tensor, rotary: RotaryTable) -> Tensor:
    # float32 whatever the dtype, because diffusers does so and the rounding is part of the model
    count = rotary.cos.shape[1]
    rotated = rotate(heads[:, :count].float(), rotary).to(heads.dtype)
    return rotated if count == heads.shape[1] else torch.cat([rotated, heads[:, count:]], dim=1)


def _attention(
    attention: Any,
    main: Projections | None,
    memory: Projections | None,
    context: BlockContext,
) -> tuple[Tensor | None, Tensor | None, KeyValue | None]:
    """Return what targets with text and what memory read, and the memory's keys and values.

    Args:
        attention: diffusers' module.
        main: of targets and text; None to run memory alone.
        memory: None where there is none, or where the context's cache stands for all of it.
        context: what else the block reads.

    Returns:
        What is read is `[B, N, D]`, None where nothing reads.
    """
    visibility, rotary = context.visibility, context.rotary
    memory_kv = context.cached if memory is None else concat(context.cached, memory.kv)
    seen = _rotated(memory_kv, rotary.seen) if memory_kv and rotary else memory_kv
    every = concat(seen, None if main is None else main.kv)
    query = None if memory is None else memory.query
    if main is not None and main.query is not None and query is not None and visibility.joint:
        both = torch.cat([query, main.query], dim=1)
        read, count = _joined(attend(attention, both, every, visibility.all)), query.shape[1]
        return read[:, count:], read[:, :count], memory_kv
    main_read, memory_read = None, None
    if main is not None:
        main_read = _joined(attend(attention, main.query, every, visibility.all))
    if query is not None and memory_kv is not None:
        own = _rotated(memory_kv, rotary.own) if rotary else memory_kv
        memory_read = _joined(attend_to_memory(attention, query, own, visibility))
    return main_read, memory_read, memory_kv


def _rotated(kv: KeyValue, table: RotaryTable | None) -> KeyValue:
    """Return keys and values with the keys rotated; without a table as they are, read by nobody."""
    return kv if table is None else KeyValue(_rotate_latents(kv.key, table), kv.value)


def _joined(heads: Tensor) -> Tensor:
    return rearrange(heads, "b n heads width -> b n (heads width)")
