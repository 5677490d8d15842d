"""Remembering memory apart from targets: a cache made whole, or made longer (design §3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch

from ...core.calls import Cache, Context, ContextCall, Feature, RememberCall
from ...core.memory import Memory, Part, merge
from ...core.text import Text
from .causal import in_order, untouched
from .setup import Keys, Setup, empty_cache, pairs

Run: TypeAlias = Callable[[Part, list[Keys] | None, Part], list[Keys]]


def remember(call: RememberCall, setup: Setup, device: torch.device, run: Run) -> Cache:
    """Give the keys and values of a memory, and of all that a cache holds already.

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
    """Give a memory's tokens as one part, in the order of keys; None where it is empty.

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
    """Give the tokens of `part` to run, and the cached keys before them, which stay."""
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
    """Give the context of text, as the blocks read it, and of a memory or its cache.

    Raises:
        ValueError: a cache under `full` attention.
    """
    if not isinstance(call.memory, Cache):
        return Context(text=text, memory=tokens_of(call.memory, setup), features=features)
    if setup.joint:
        raise ValueError("full attention reads memory, not a cache")
    return Context(text=text, cache=call.memory, features=features)
