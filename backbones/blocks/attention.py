"""Attention among targets, text and memory: what goes through the blocks, and who attends to whom.

Every token is in one of two streams, memory or the rest, which share a block's weights and meet in
self-attention only. What travels between blocks are tuples, not attrs classes: offload hooks move
the tensors of tuples to the block's device.

Where samples of a batch differ in length, padding must not be attended to. There are two ways: a
mask (slower, and refused by flash and sage attention), or attention sample by sample over the real
keys alone. A model has one of them (`dit.DiT.masks_padding`).
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from ...core.interfaces.backbone import Feature
from ...core.values.shapes import Valid
from .rotary import RotaryTable

# Which keys are real: a bool mask `[B, n]`, or the indices of each sample's; None where all are.
RealKeys: TypeAlias = Tensor | tuple[Tensor, ...] | None


class KeyValue(NamedTuple):
    """Keys (rotary embedding applied) and values of tokens, `[B, N, heads, head width]` each."""

    key: Tensor
    value: Tensor


class Stream(NamedTuple):
    """Tokens on their way through the blocks.

    Attributes:
        hidden: `[B, N, D]`.
        modulation: what the blocks make scales, shifts and gates of. Wan: of the tokens' time,
            `[B or 1, 6, D]` or, for each token, `[B, N, 6, D]`. HunyuanVideo: the embedding of
            time, prompt and guidance, `[B or 1, D]`.
        rotary: of the tokens' positions; tokens behind those of the table (text) are not rotated.
    """

    hidden: Tensor
    modulation: Tensor
    rotary: RotaryTable

    def then(self, other: Stream) -> Stream:
        """Return these tokens and those of another stream behind them; the modulation is both's."""
        rotary = (torch.cat(pair, dim=1) for pair in zip(self.rotary, other.rotary, strict=True))
        hidden = torch.cat([self.hidden, other.hidden], dim=1)
        return Stream(hidden, self.modulation, RotaryTable(*rotary))

    def split(self, count: int) -> tuple[Stream, Stream]:
        """Return the first `count` tokens, and those behind them."""
        first = RotaryTable(*(x[:, :count] for x in self.rotary))
        rest = RotaryTable(*(x[:, count:] for x in self.rotary))
        return (
            Stream(self.hidden[:, :count], self.modulation, first),
            Stream(self.hidden[:, count:], self.modulation, rest),
        )


class Projections(NamedTuple):
    """What a block's attention reads of a stream.

    Attributes:
        query: `[B, N, heads, head width]`; None where the tokens are only attended to.
        kv: keys and values.
        gates: the modulation that is applied after attention.
    """

    query: Tensor | None
    kv: KeyValue
    gates: tuple[Tensor, ...] = ()


class BlockGroup(NamedTuple):
    """Samples of a batch whose memory has the same blocks of latents (`isolated-causal`).

    Attributes:
        rows: indices of the samples in the batch.
        ends: how many tokens all blocks up to each one have; padding stands behind the last.
    """

    rows: tuple[int, ...]
    ends: tuple[int, ...]


class Visibility(NamedTuple):
    """Which tokens attend to which in self-attention.

    Attributes:
        joint: memory attends to targets and text too (`full`); else to memory alone.
        memory: the real keys among memory, never none of a sample.
        all: the real keys among memory, targets and, where it is in self-attention, text.
        groups: the blocks of the memory that runs (`isolated-causal`); None: it is one block.
    """

    joint: bool = False
    memory: RealKeys = None
    all: RealKeys = None
    groups: tuple[BlockGroup, ...] | None = None


class MemoryRotary(NamedTuple):
    """Rotary tables of all memory, for keys that are rotated where they are read.

    Attributes:
        own: as memory reads itself; None where no memory runs.
        seen: as targets read it; None where there are no targets.
    """

    own: RotaryTable | None
    seen: RotaryTable | None


class BlockContext(NamedTuple):
    """What a block reads beside its tokens.

    Attributes:
        cached: keys and values of memory in this block, from a cache; None: there are none.
        visibility: which tokens attend to which.
        features: of the memory, by name, for the block's enhancer; targets read them.
        last: no block follows, so that memory's hidden tokens are not computed.
        rotary: of memory's keys, where they, and cached ones, are not rotated yet; None: all are.
    """

    cached: KeyValue | None
    visibility: Visibility
    features: Mapping[str, Feature]
    last: bool
    rotary: MemoryRotary | None = None


def concat(first: KeyValue | None, second: KeyValue | None) -> KeyValue:
    """Return the keys and values of two streams one behind the other; one of them may be None."""
    if first is None or second is None:
        present = first or second
        assert present is not None, "a block needs targets or memory"
        return present
    return KeyValue(
        torch.cat([first.key, second.key], dim=1), torch.cat([first.value, second.value], dim=1)
    )


def attend(attention: Any, query: Tensor | None, kv: KeyValue, real: RealKeys = None) -> Tensor:
    """Return attention of the queries over the real keys, shaped like `query`.

    Args:
        attention: diffusers' attention module; its processor names the backend that the user chose.
        query: `[B, N, heads, head width]`.
        kv: `[B, M, heads, head width]` each.
        real: which of the M keys are real.
    """
    assert query is not None, "only tokens that nothing reads are projected without a query"
    if not isinstance(real, tuple):
        return _dispatch(attention, query, kv, real)
    # so each sample reads what it would read alone
    rows = []
    for i, index in enumerate(real):
        own = KeyValue(kv.key[i : i + 1, index], kv.value[i : i + 1, index])
        rows.append(_dispatch(attention, query[i : i + 1], own, None))
    return torch.cat(rows)


def _dispatch(attention: Any, query: Tensor, kv: KeyValue, mask: Tensor | None) -> Tensor:
    processor = attention.processor  # only read: nothing of a call is ever kept on it
    out: Tensor = dispatch_attention_fn(
        query,
        kv.key,
        kv.value,
        attn_mask=mask,
        dropout_p=0.0,
        is_causal=False,
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config,
    )
    return out.to(query.dtype)


def attend_to_memory(
    attention: Any, query: Tensor | None, kv: KeyValue, visibility: Visibility
) -> Tensor:
    """Return attention of memory over memory alone, shaped like `query`.

    Args:
        attention: diffusers' attention module.
        query: of the last tokens of the memory.
        kv: of all of it.
        visibility: which of it is real, and its blocks.
    """
    if visibility.groups is None:
        return attend(attention, query, kv, visibility.memory)
    assert query is not None, "only tokens that nothing reads are projected without a query"
    return attend_by_block(lambda q, seen: attend(attention, q, seen), query, kv, visibility.groups)


def attend_by_block(
    attend: Callable[[Tensor, KeyValue], Tensor],
    query: Tensor,
    kv: KeyValue,
    groups: Sequence[BlockGroup],
) -> Tensor:
    """Return attention of each token over its own block and those before it, without any mask.

    Args:
        attend: returns attention of queries over all the keys it gets, shaped like the queries.
        query: of the last n tokens of the memory, `[B, n, heads, head width]`.
        kv: of all of it, `[B, m, heads, head width]`, m ≥ n.
        groups: of all of it.

    Returns:
        Shaped like `query`; zero on padding.
    """
    if len(groups) == 1:
        return _attend_in_group(attend, query, kv, groups[0].ends)
    outs = []
    for rows, ends in groups:
        own = KeyValue(kv.key[list(rows)], kv.value[list(rows)])
        outs.append(_attend_in_group(attend, query[list(rows)], own, ends))
    order = torch.tensor([row for group in groups for row in group.rows]).argsort()
    return torch.cat(outs)[order.to(query.device)]


def _attend_in_group(
    attend: Callable[[Tensor, KeyValue], Tensor],
    query: Tensor,
    kv: KeyValue,
    ends: tuple[int, ...],
) -> Tensor:
    skip, outs = kv.key.shape[1] - query.shape[1], []
    first = skip
    for end in (end for end in ends if end > skip):
        seen = KeyValue(kv.key[:, :end], kv.value[:, :end])
        outs.append(attend(query[:, first - skip : end - skip], seen))
        first = end
    if first < kv.key.shape[1] or not outs:  # nothing reads padding
        outs.append(torch.zeros_like(query[:, first - skip :]))
    return torch.cat(outs, dim=1)


def key_masks(
    memory: Valid | None, targets: int, text: Valid | None, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """Return masks of the real keys among memory, `[B, M]`, and among memory, targets and text.

    A mask is None where all its keys are real. A sample whose memory is padding alone keeps all of
    it for itself, because a softmax over nothing is NaN; targets never attend to it.

    Args:
        memory: which memory tokens are real, `[B, M]`; None: there are none.
        targets: the number of target tokens, all of them real.
        text: which text tokens are real, `[B, L]`; None: text is not in self-attention.
        device: of the masks.
    """
    masks = [mask.to(device) for mask in (memory, text) if mask is not None]
    if all(bool(mask.all()) for mask in masks):
        return None, None
    ones = masks[0].new_ones(masks[0].shape[0], targets)
    every = torch.cat([masks[0], ones, *masks[1:]] if memory is not None else [ones, *masks], dim=1)
    if memory is None or bool(masks[0].all()):
        return None, every
    return masks[0] | ~masks[0].any(dim=1, keepdim=True), every


def key_indices(mask: Tensor | None) -> tuple[Tensor, ...] | None:
    """Return the indices of each sample's real keys, int64 `[n]`; None where all are real."""
    return None if mask is None else tuple(row.nonzero()[:, 0] for row in mask)


@functools.cache
def announce_masks() -> None:
    """Log once that attention runs with a mask."""
    logging.getLogger(__name__).warning(
        "memories of different lengths in one batch: attention runs with a mask, which is slower "
        "and which flash and sage backends refuse; batch by length to avoid it"
    )


@functools.cache
def announce_single_samples() -> None:
    """Log once that attention runs sample by sample."""
    logging.getLogger(__name__).info(
        "prompts or memories of different lengths in one batch: attention runs sample by sample, "
        "without masks; batches of one length are faster where samples are small"
    )
