"""Remembering memory apart from targets: a cache made whole, or made longer (design §3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.interfaces.backbone import Cache, Context, ContextCall, Feature, RememberCall
from ...core.values.memory import Memory, Part, merge
from ...core.values.text import Text
from .setup import Keys, Masks, Setup, empty_cache, pairs

# ⟦backbones/dit/causal.py⟧ Memory that sees no later memory: blocks of latents on an absolute grid (`isolated-causal`). Block 0 is latent 0; block j holds latents b(j − 1) + 1 … bj, as causal tokens do at rate r. A token belongs to the block of the last latent it covers and attends to all memory of blocks up to its own. So what a block's keys are is settled once it is complete, whatever comes later.


SLACK = 1e-9  # of a block; places are sums of halves, exact, but a plugin's may be rounded

# Tuples, not attrs: offload hooks move the tensors of tuples to the block's device.


class Group(NamedTuple):
    """Samples whose memory has the same blocks.

    Attributes:
        rows: their places in the batch.
        ends: how many tokens the blocks up to each one have; padding stands behind the last.
    """

    rows: tuple[int, ...]
    ends: tuple[int, ...]


class Sight(NamedTuple):
    """Who sees whom in self-attention.

    Attributes:
        joint: memory sees targets and text too (`full`); else memory alone.
        masks: of keys, or None where all are real.
        groups: the blocks of memory that goes through beside others (`isolated-causal`); else None.
    """

    joint: bool = False
    masks: Masks | None = None
    groups: tuple[Group, ...] | None = None


def block_numbers(part: Part, size: int) -> Tensor:
    """Return the block of each token, float64 `[B, N]`; padding has infinity.

    Raises:
        UserError: a token covers latents of two blocks of `size`.
    """
    reach = (part.extents[..., 0].to(torch.float64) - 1) / 2
    first, last = part.positions[..., 0] - reach, part.positions[..., 0] + reach
    blocks = (last / size - SLACK).ceil()
    split = part.valid & (blocks != (first / size - SLACK).ceil())
    if bool(split.any()):
        raise UserError(
            f"a memory token covers latents {float(first[split][0]):g} to "
            f"{float(last[split][0]):g}, which lie in two blocks of backbone.cache_block {size}: "
            f"it must be a multiple of all time rates"
        )
    return torch.where(part.valid, blocks, torch.inf)


def in_order(part: Part, size: int) -> Part:
    """Return the tokens ordered by the last latent they cover, padding last; equal ones as before.

    Raises:
        UserError: a token covers latents of two blocks of `size`.
    """
    block_numbers(part, size)
    last = torch.where(part.valid, part.last_covered, torch.inf)
    return part.take(last.argsort(dim=1, stable=True))


def groups_of(part: Part, size: int) -> tuple[Group, ...]:
    """Return the samples of an ordered part by their blocks: one group where all are alike."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row, blocks in enumerate(block_numbers(part, size).cpu()):
        _, counts = blocks[blocks.isfinite()].unique_consecutive(return_counts=True)
        found.setdefault(tuple(counts.cumsum(0).tolist()), []).append(row)
    return tuple(Group(tuple(rows), ends) for ends, rows in found.items())


def untouched(part: Part, more: Part, size: int) -> int:
    """Return how many first tokens of the ordered `part` stay as they are if `more` joins it.

    They are the tokens of all blocks before the first that gets a token, in every sample.
    """
    first = block_numbers(more, size).amin(dim=1, keepdim=True)
    return int((block_numbers(part, size) < first).sum(dim=1).min())


def by_block(
    attend: Callable[[Tensor, Keys], Tensor], query: Tensor, keys: Keys, groups: Sequence[Group]
) -> Tensor:
    """Return what each token reads of its own block and those before it, without any mask.

    Args:
        attend: gives what queries read of all the keys they are given, shaped like the queries.
        query: of the last n tokens of the memory, `[B, n, heads, head width]`.
        keys: of all of it, `[B, m, heads, head width]`, m ≥ n.
        groups: of all of it.

    Returns:
        Shaped like `query`; zero on padding.
    """
    if len(groups) == 1:
        return _one_group(attend, query, keys, groups[0].ends)
    outs = [_one_group(attend, query[list(rows)], _rows(keys, rows), ends) for rows, ends in groups]
    place = torch.tensor([row for group in groups for row in group.rows]).argsort()
    return torch.cat(outs)[place.to(query.device)]


def _rows(keys: Keys, rows: tuple[int, ...]) -> Keys:
    return Keys(keys.key[list(rows)], keys.value[list(rows)])


def _one_group(
    attend: Callable[[Tensor, Keys], Tensor], query: Tensor, keys: Keys, ends: tuple[int, ...]
) -> Tensor:
    skip, outs = keys.key.shape[1] - query.shape[1], []
    first = skip
    for end in (end for end in ends if end > skip):
        seen = Keys(keys.key[:, :end], keys.value[:, :end])
        outs.append(attend(query[:, first - skip : end - skip], seen))
        first = end
    if first < keys.key.shape[1] or not outs:  # padding asks nothing
        outs.append(torch.zeros_like(query[:, first - skip :]))
    return torch.cat(outs, dim=1)


Run: TypeAlias = Callable[[Part, list[Keys] | None, Part], list[Keys]]


def remember(call: RememberCall, setup: Setup, device: torch.device, run: Run) -> Cache:
    """Return the keys and values of a memory, and of all that a cache holds already.

    With `isolated-causal`, cached keys stay up to the first block that a new token falls into; from
    there on all is run again, out of the tokens that the cache carries. So nothing has to be known
    of blocks that are complete: the keys of a block are right for the tokens it has.

    Args:
        call: memory, and a cache to go on from or None.
        setup: of the model.
        device: of the model.
        run: gives the keys and values of all memory, block by block, out of the tokens to run,
            the keys and values that stand before them (None: none), and all tokens as one part.

    Raises:
        ValueError: attention is `full`, or cannot append and there is a cache to go on from, or the
            cache is of another number of samples.
        UserError: `isolated-causal`, and a token covers latents of two blocks.
    """
    cache = call.cache
    _check(call, setup)
    if cache is not None and not call.memory.length:
        return cache
    memory = merge([call.memory] if cache is None else [cache.memory, call.memory])
    part = tokens_of(memory, setup)
    if part is None:
        return empty_cache(device)
    new, past = (part, None) if cache is None else _go_on(part, cache, call.memory, setup)
    made = run(new, past, part)
    return Cache(
        keys=tuple(keys.key for keys in made),
        values=tuple(keys.value for keys in made),
        positions=part.positions,
        valid=part.valid,
        memory=memory,
    )


def tokens_of(memory: Memory, setup: Setup) -> Part | None:
    """Return a memory's tokens as one part, in the order of keys; None where it is empty.

    Raises:
        UserError: `isolated-causal`, and a token covers latents of two blocks.
    """
    part = memory.joined()
    if part is None or setup.attention != "isolated-causal":
        return part
    return in_order(part, setup.cache_block)


def _check(call: RememberCall, setup: Setup) -> None:
    if setup.attention == "full":
        raise ValueError("full attention has no cache: memory sees targets at every step")
    if call.cache is None:
        return
    if setup.attention != "isolated-causal":
        raise ValueError("isolated attention cannot append: that needs isolated-causal")
    batches = {part.tokens.shape[0] for m in (call.cache.memory, call.memory) for part in m.parts}
    if len(batches) > 1:
        raise ValueError(f"a cache and a memory of {min(batches)} and {max(batches)} samples")


def _go_on(part: Part, cache: Cache, more: Memory, setup: Setup) -> tuple[Part, list[Keys] | None]:
    """Return the tokens of `part` to run, and the cached keys before them, which stay."""
    before, joining = tokens_of(cache.memory, setup), more.joined()
    assert joining is not None, "there is something to append"
    kept = 0 if before is None else untouched(before, joining, setup.cache_block)
    if not kept:
        return part, None
    batch, count = part.valid.shape
    past = [Keys(key[:, :kept], value[:, :kept]) for key, value in pairs(cache)]
    return part.take(torch.arange(kept, count).expand(batch, -1)), past


def context_of(
    call: ContextCall, setup: Setup, text: Text, features: Mapping[str, Feature]
) -> Context:
    """Return the context of text, as the blocks read it, and of a memory or its cache.

    Raises:
        ValueError: a cache under `full` attention.
    """
    if not isinstance(call.memory, Cache):
        return Context(text=text, memory=tokens_of(call.memory, setup), features=features)
    if setup.joint:
        raise ValueError("full attention reads memory, not a cache")
    return Context(text=text, cache=call.memory, features=features)
