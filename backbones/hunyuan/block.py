"""The transformer blocks of HunyuanVideo with a stream for memory, in both their kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from torch import Tensor

from ...core.interfaces.backbone import Feature
from ..blocks.enhancer import Enhancer, enhanced
from ..blocks.memory import Group, by_block
from ..blocks.rotary import Axes, Rotary, rotary
from ..blocks.setup import Keys, beside

# ⟦backbones/hunyuan/rotary.py⟧ How HunyuanVideo's heads turn, and FramePack's mean over cells beyond the frame's end.


def axes_of(config: Any) -> Axes:
    """Return how the heads of a model turn, from diffusers' config; float32, as its table is."""
    return Axes(config.rope_theta, tuple(config.rope_axes_dim), torch.float32)


def rotate(x: Tensor, turns: Rotary) -> Tensor:
    """Return the heads `[B, N, heads, head width]` turned, computed in float32, in their own dtype.

    float32 whatever the dtype, because diffusers does so and the rounding is part of the model.
    """
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turns
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def replicated(axes: Axes, positions: Tensor, extents: Tensor) -> Rotary:
    """Return the mean rotary embedding of the cells that each token covers, as FramePack pools it.

    FramePack fills the table up to whole blocks by repeating its last row and column. So where a
    token covers fewer rows (columns) than others of its moment do, the last of them counts for the
    missing ones, too. A frame smaller than one block, and frames missing in time, are not filled.

    Args:
        axes: of the model.
        positions: centres of what tokens cover, float64 `[B, N, 3]`.
        extents: real cells that they cover, `[B, N, 3]`.

    Source: FramePack, arXiv 2504.12626; diffusers' `_pad_rotary_emb`.
    """
    share = extents / _blocks(positions, extents)  # [B, N, 3]
    counts = torch.tensor([width // 2 for width in axes.widths], device=positions.device)
    share = share.repeat_interleave(counts, dim=-1)[:, :, None].float()
    inside, last = rotary(axes, positions, extents), rotary(axes, positions + (extents - 1) / 2)
    return Rotary(
        inside.cos * share + last.cos * (1 - share), inside.sin * share + last.sin * (1 - share)
    )


def _blocks(positions: Tensor, extents: Tensor) -> Tensor:
    """Return the size of each token's block, `[B, N, 3]`: the largest extent of its moment."""
    batch = torch.arange(positions.shape[0], device=positions.device, dtype=positions.dtype)
    sample = batch[:, None].expand(positions.shape[:2])
    moments = torch.stack([sample, positions[..., 0], extents[..., 0]], dim=-1).flatten(0, 1)
    _, group = moments.unique(dim=0, return_inverse=True)
    flat = extents[..., 1:].flatten(0, 1)
    most = flat.new_zeros(int(group.max()) + 1, 2)
    most.scatter_reduce_(0, group[:, None].expand(-1, 2), flat, "amax")
    return torch.cat([extents[..., :1], most[group].view_as(extents[..., 1:])], dim=-1)


# ⟦backbones/hunyuan/attend.py⟧ Attention of HunyuanVideo's blocks: streams that meet, and keys of different lengths.


# Tuples, not attrs: offload hooks move the tensors of tuples to the block's device.


class Stream(NamedTuple):
    """Tokens on their way through the blocks.

    Attributes:
        hidden: `[B, N, D]`.
        time: embedding of their time, prompt and guidance, `[B or 1, D]`.
        rotary: of their positions; what stands behind the placed tokens is text.
    """

    hidden: Tensor
    time: Tensor
    rotary: Rotary


class Heads(NamedTuple):
    """A stream at the door of attention; without a query it is only read."""

    query: Tensor | None
    keys: Keys


class View(NamedTuple):
    """Who sees whom in attention. Indices of real keys are given where samples differ in length.

    Attributes:
        joint: memory sees targets and text too (`full`); else memory alone.
        memory: real keys of memory alone, one `[m]` a sample, never empty; None where all are.
        all: real keys of memory, targets and text, one `[n]` a sample; None where all are.
        groups: the blocks of memory (`isolated-causal`), or None where it is one.
    """

    joint: bool = False
    memory: tuple[Tensor, ...] | None = None
    all: tuple[Tensor, ...] | None = None
    groups: tuple[Group, ...] | None = None


def latent_heads(attention: Any, x: Tensor, turns: Rotary, ask: bool = True) -> Heads:
    """Return the heads `[B, N, heads, head width]` of latents, and of text behind them."""
    heads = (attention.heads, -1)
    query = None
    if ask:
        query = _turn(attention.norm_q(attention.to_q(x).unflatten(2, heads)), turns)
    key = _turn(attention.norm_k(attention.to_k(x).unflatten(2, heads)), turns)
    return Heads(query, Keys(key, attention.to_v(x).unflatten(2, heads)))


def _turn(heads: Tensor, turns: Rotary) -> Tensor:
    count = turns.cos.shape[1]
    if count == heads.shape[1]:
        return rotate(heads, turns)
    return torch.cat([rotate(heads[:, :count], turns), heads[:, count:]], dim=1)


def text_heads(attention: Any, x: Tensor) -> Heads:
    """Return the heads of text in a dual-stream block; text has no place."""
    heads = (attention.heads, -1)
    query = attention.norm_added_q(attention.add_q_proj(x).unflatten(2, heads))
    key = attention.norm_added_k(attention.add_k_proj(x).unflatten(2, heads))
    return Heads(query, Keys(key, attention.add_v_proj(x).unflatten(2, heads)))


def meet(
    attention: Any, main: Heads | None, memory: Heads | None, past: Keys | None, view: View
) -> tuple[Tensor | None, Tensor | None, Keys | None]:
    """Return what targets with text and what memory read, `[B, N, D]` each, and memory's keys.

    Args:
        attention: diffusers' module.
        main: of targets and text; None to run memory alone.
        memory: its heads; None where there is none, or where `past` stands for all of it.
        past: keys and values of memory before that, from a cache.
        view: who sees whom.
    """
    known = past if memory is None else beside(past, memory.keys)
    seen = beside(known, None if main is None else main.keys)
    if memory is None or memory.query is None:
        read = None if main is None else _attend(attention, main.query, seen, view.all)
        return _flat(read), None, known
    if main is None or not view.joint:
        read = None if main is None else _attend(attention, main.query, seen, view.all)
        return _flat(read), _flat(_alone(attention, memory.query, known, view)), known
    assert main.query is not None, "targets always ask"
    query = torch.cat([memory.query, main.query], dim=1)
    both, count = _flat(_attend(attention, query, seen, view.all)), memory.query.shape[1]
    return both[:, count:], both[:, :count], known


def _flat(heads: Tensor | None) -> Any:
    return None if heads is None else heads.flatten(2, 3)


def _alone(attention: Any, query: Tensor, keys: Keys | None, view: View) -> Tensor:
    assert keys is not None, "memory has keys"
    if view.groups is None:
        return _attend(attention, query, keys, view.memory)
    return by_block(lambda q, k: _attend(attention, q, k, None), query, keys, view.groups)


def _attend(
    attention: Any, query: Tensor | None, keys: Keys, real: Sequence[Tensor] | None
) -> Tensor:
    assert query is not None, "who reads must ask"
    if real is None:
        return _dispatch(attention, query, keys)
    # One sample after the other: no mask, so that flash and sage backends run, and each sample
    # reads what it would read alone.
    rows = []
    for i, index in enumerate(real):
        own = Keys(keys.key[i : i + 1, index], keys.value[i : i + 1, index])
        rows.append(_dispatch(attention, query[i : i + 1], own))
    return torch.cat(rows)


def _dispatch(attention: Any, query: Tensor, keys: Keys) -> Tensor:
    # The processor only tells which backend the user chose; nothing is ever kept on it.
    processor = attention.processor
    out: Tensor = dispatch_attention_fn(
        query,
        keys.key,
        keys.value,
        attn_mask=None,
        dropout_p=0.0,
        is_causal=False,
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config,
    )
    return out.to(query.dtype)


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
        """Return the hidden tokens of targets, text and memory, and all of the memory's keys.

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
    """Return what `count` targets read, and what text read, as tensors of their own if `whole`.

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
        """Return the hidden tokens of `main` (targets, then text) and memory, and all its keys.

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
    """Return `count` blocks of a kind, of the model that a diffusers config describes."""
    numbers = {"mlp_ratio": config.mlp_ratio, "qk_norm": config.qk_norm}
    return [
        kind(config.num_attention_heads, config.attention_head_dim, **numbers) for _ in range(count)
    ]
