"""The transformer blocks of HunyuanVideo with a stream for memory, in both their kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from torch import Tensor

from ...core.calls import Feature
from ..dit.enhance import Enhancer, enhanced
from ..dit.setup import Keys, beside
from .attend import Heads, Stream, View, latent_heads, meet, text_heads


class Entered(NamedTuple):
    """A stream at the door of attention, and what modulates it behind that."""

    heads: Heads
    gates: tuple[Tensor, ...]


class Known(NamedTuple):
    """What every block is given beside its tokens.

    Attributes:
        past: keys and values of memory in this block, from a cache.
        view: who sees whom.
        features: of a memory, by name, for the block's enhancer; targets read them.
        last: no block follows, so memory's hidden tokens are not made (None).
    """

    past: Keys | None
    view: View
    features: Mapping[str, Feature]
    last: bool


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
        self, target: Stream | None, text: Tensor | None, memory: Stream | None, known: Known
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, Keys | None]:
        """Give the hidden tokens of targets, text and memory, and all of the memory's keys.

        Args:
            target: the noisy tokens; None (and no text) to run memory alone.
            text: refined prompts `[B, L, D]`, under the modulation of the targets.
            memory: its tokens; None where there is none, or where `past` stands for them.
            known: the rest.
        """
        own = None if memory is None else self._enter(memory, ask=not known.last)
        held = None if own is None else own.heads
        if target is None or text is None:
            _, recalled, keys = meet(self.attn, None, held, known.past, known.view)
            return None, None, self._leave_memory(memory, own, recalled), keys
        new, words = self._enter(target), self._enter_text(text, target.time)
        main = _side_by_side(new.heads, words.heads)
        read, recalled, keys = meet(self.attn, main, held, known.past, known.view)
        placed, written = _apart(read, target.hidden.shape[1], whole=keys is not None)
        out = self._leave(target.hidden, placed, new.gates)
        out = enhanced(self.enhancer, out, known.features, self.attn.processor._attention_backend)
        said = self._leave_text(text, written, words.gates)
        return out, said, self._leave_memory(memory, own, recalled), keys

    def _enter(self, stream: Stream, ask: bool = True) -> Entered:
        x, *gates = self.norm1(stream.hidden, emb=stream.time)
        return Entered(latent_heads(self.attn, x, stream.rotary, ask), tuple(gates))

    def _enter_text(self, text: Tensor, time: Tensor) -> Entered:
        x, *gates = self.norm1_context(text, emb=time)
        return Entered(text_heads(self.attn, x), tuple(gates))

    def _leave(self, hidden: Tensor, read: Tensor, gates: tuple[Tensor, ...]) -> Tensor:
        gate, shift, scale, mlp_gate = gates
        project, dropout = self.attn.to_out
        hidden = hidden + dropout(project(read)) * gate.unsqueeze(1)
        x = self.norm2(hidden) * (1 + scale[:, None]) + shift[:, None]
        out: Tensor = hidden + mlp_gate.unsqueeze(1) * self.ff(x)
        return out

    def _leave_text(self, text: Tensor, read: Tensor, gates: tuple[Tensor, ...]) -> Tensor:
        gate, shift, scale, mlp_gate = gates
        text = text + self.attn.to_add_out(read) * gate.unsqueeze(1)
        x = self.norm2_context(text) * (1 + scale[:, None]) + shift[:, None]
        out: Tensor = text + mlp_gate.unsqueeze(1) * self.ff_context(x)
        return out

    def _leave_memory(
        self, memory: Stream | None, own: Entered | None, recalled: Tensor | None
    ) -> Tensor | None:
        if memory is None or own is None or recalled is None:
            return None
        return self._leave(memory.hidden, recalled, own.gates)


def _side_by_side(new: Heads, words: Heads) -> Heads:
    assert new.query is not None and words.query is not None, "both ask"
    return Heads(torch.cat([new.query, words.query], dim=1), beside(new.keys, words.keys))


def _apart(read: Tensor | None, count: int, whole: bool) -> tuple[Tensor, Tensor]:
    """Give what `count` targets read, and what text read, as tensors of their own if `whole`.

    Linears round by how memory lies: without memory these are slices, as in diffusers. A slice's
    bits also differ between frozen weights and others, so what has no twin to equal is copied.
    """
    assert read is not None, "targets read"
    parts = read[:, :count], read[:, count:]
    return (parts[0].contiguous(), parts[1].contiguous()) if whole else parts


class SingleBlock(HunyuanVideoSingleTransformerBlock):  # type: ignore[misc]
    """HunyuanVideo's block for latents and text as one sequence, with a stream for memory.

    Same parameters as diffusers' block, and without memory the same bits.
    """

    enhancer: Enhancer | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_module("enhancer", None)

    def forward(
        self, main: Stream | None, memory: Stream | None, known: Known
    ) -> tuple[Tensor | None, Tensor | None, Keys | None]:
        """Give the hidden tokens of `main` (targets, then text) and memory, and all its keys.

        Args:
            main: targets and text behind them; None to run memory alone.
            memory: as in `DualBlock`.
            known: the rest.
        """
        own = None if memory is None else self._enter(memory, ask=not known.last)
        new = None if main is None else self._enter(main)
        held, asked = (None if x is None else x.heads for x in (own, new))
        read, recalled, keys = meet(self.attn, asked, held, known.past, known.view)
        out = self._enhance(main, self._leave(main, new, read), known.features)
        return out, self._leave(memory, own, recalled), keys

    def _enter(self, stream: Stream, ask: bool = True) -> Entered:
        x, gate = self.norm(stream.hidden, emb=stream.time)
        wide = (self.act_mlp(self.proj_mlp(x)),) if ask else ()
        return Entered(latent_heads(self.attn, x, stream.rotary, ask), (gate, *wide))

    def _leave(
        self, stream: Stream | None, entered: Entered | None, read: Tensor | None
    ) -> Tensor | None:
        if stream is None or entered is None or read is None:
            return None
        gate, wide = entered.gates
        out: Tensor = gate.unsqueeze(1) * self.proj_out(torch.cat([read, wide], dim=2))
        return out + stream.hidden

    def _enhance(
        self, main: Stream | None, out: Tensor | None, features: Mapping[str, Feature]
    ) -> Tensor | None:
        if main is None or out is None or self.enhancer is None:
            return out
        count, backend = main.rotary.cos.shape[1], self.attn.processor._attention_backend
        targets = enhanced(self.enhancer, out[:, :count], features, backend)
        return torch.cat([targets, out[:, count:]], dim=1)


def blocks_of(kind: type[Any], config: Any, count: int) -> list[Any]:
    """Give `count` blocks of a kind, of the model that a diffusers config describes."""
    numbers = {"mlp_ratio": config.mlp_ratio, "qk_norm": config.qk_norm}
    return [
        kind(config.num_attention_heads, config.attention_head_dim, **numbers) for _ in range(count)
    ]
