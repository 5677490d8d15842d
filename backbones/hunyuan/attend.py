"""Attention of HunyuanVideo's blocks: streams that meet, and keys of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from ..dit.causal import Group, by_block
from ..dit.rotary import Rotary
from ..dit.setup import Keys, beside
from .rotary import rotate

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
    """Give the heads `[B, N, heads, head width]` of latents, and of text behind them."""
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
    """Give the heads of text in a dual-stream block; text has no place."""
    heads = (attention.heads, -1)
    query = attention.norm_added_q(attention.add_q_proj(x).unflatten(2, heads))
    key = attention.norm_added_k(attention.add_k_proj(x).unflatten(2, heads))
    return Heads(query, Keys(key, attention.add_v_proj(x).unflatten(2, heads)))


def meet(
    attention: Any, main: Heads | None, memory: Heads | None, past: Keys | None, view: View
) -> tuple[Tensor | None, Tensor | None, Keys | None]:
    """Give what targets with text and what memory read, `[B, N, D]` each, and memory's keys.

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
