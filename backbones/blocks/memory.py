"""From a memory to what blocks read: tokens in the order of keys, and caches that grow (design §3).

`isolated` memory attends to itself alone, so its keys and values are computed once for all steps,
prompts and guidance branches. With `isolated-causal` it also attends to no later memory, so a cache
can be appended to while a take grows. It is causal by blocks of latents on an absolute grid: block
0 is latent 0; block j holds latents b(j − 1) + 1 … bj, as causal tokens do at rate b. A token
belongs to the block of the last latent that it covers, and attends to all memory of blocks up to
its own. So once a block is complete its keys never change, whatever comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.interfaces.backbone import Cache, Context, ContextCall, Feature, RememberCall
from ...core.values.memory import Memory, Part, blocks_of, merge
from ...core.values.text import Text
from .attention import BlockGroup, KeyValue
from .base import Setup

# The keys and values of a memory block by block, out of: the tokens to run, the keys and values
# that stand before them (None: none), and all tokens of the memory as one part.
ComputeKeys: TypeAlias = Callable[[Part, list[KeyValue] | None, Part], list[KeyValue]]


def remember(
    call: RememberCall, setup: Setup, device: torch.device, compute_keys: ComputeKeys
) -> Cache:
    """Return the keys and values of a memory, and of all that a cache holds already.

    With `isolated-causal`, cached keys stay up to the first block that a new token falls into; from
    there on all is computed again, out of the tokens that the cache carries. So nothing has to be
    known of which blocks are complete: the keys of a block are right for the tokens it has.

    Args:
        call: memory, and a cache to go on from or None.
        setup: of the model.
        device: of the model.
        compute_keys: runs tokens through the model.

    Raises:
        ValueError: attention is `full`, or cannot append and there is a cache to go on from, or the
            cache is of another number of samples.
        UserError: `isolated-causal`, and a token covers latents of two blocks.
    """
    cache = call.cache
    _check_call(call, setup)
    if cache is not None and not call.memory.length:
        return cache
    memory = merge([call.memory] if cache is None else [cache.memory, call.memory])
    part = memory_tokens(memory, setup)
    if part is None:
        return _empty_cache(device)
    new, cached = (part, None) if cache is None else _append(part, cache, call.memory, setup)
    computed = compute_keys(new, cached, part)
    return Cache(
        keys=tuple(kv.key for kv in computed),
        values=tuple(kv.value for kv in computed),
        positions=part.positions,
        extents=part.extents,
        valid=part.valid,
        memory=memory,
    )


def _check_call(call: RememberCall, setup: Setup) -> None:
    if setup.attention == "full":
        raise ValueError("full attention has no cache: memory sees targets at every step")
    if call.cache is None:
        return
    if setup.attention != "isolated-causal":
        raise ValueError("isolated attention cannot append: that needs isolated-causal")
    batches = {part.tokens.shape[0] for m in (call.cache.memory, call.memory) for part in m.parts}
    if len(batches) > 1:
        raise ValueError(f"a cache and a memory of {min(batches)} and {max(batches)} samples")


def _empty_cache(device: torch.device) -> Cache:
    return Cache(
        keys=(),
        values=(),
        positions=torch.zeros(0, 0, 3, dtype=torch.float64),
        extents=torch.zeros(0, 0, 3, dtype=torch.float64),
        valid=torch.zeros(0, 0, dtype=torch.bool, device=device),
    )


def _append(
    part: Part, cache: Cache, more: Memory, setup: Setup
) -> tuple[Part, list[KeyValue] | None]:
    """Return the tokens of `part` to run, and the cached keys and values that stay before them."""
    before, joining = memory_tokens(cache.memory, setup), more.joined()
    assert joining is not None, "there is something to append"
    unchanged = 0 if before is None else _unchanged(before, joining, setup.cache_block)
    if not unchanged:
        return part, None
    batch, count = part.valid.shape
    cached = [
        KeyValue(key[:, :unchanged], value[:, :unchanged]) for key, value in cached_by_block(cache)
    ]
    return part.take(torch.arange(unchanged, count).expand(batch, -1)), cached


def _unchanged(part: Part, more: Part, size: int) -> int:
    """Return how many first tokens of the ordered `part` keep their keys if `more` joins it.

    They are the tokens of all blocks before the first that gets a token, in every sample.
    """
    first = block_numbers(more, size).amin(dim=1, keepdim=True)
    return int((block_numbers(part, size) < first).sum(dim=1).min())


def build_context(
    call: ContextCall, setup: Setup, text: Text, features: Mapping[str, Feature]
) -> Context:
    """Return the context of a prepared text, and of a memory or its cache.

    Raises:
        ValueError: a cache under `full` attention.
        UserError: `isolated-causal`, and a token covers latents of two blocks.
    """
    if not isinstance(call.memory, Cache):
        return Context(text=text, memory=memory_tokens(call.memory, setup), features=features)
    if setup.joint:
        raise ValueError("full attention reads memory, not a cache")
    return Context(text=text, cache=call.memory, features=features)


def cached_by_block(cache: Cache) -> list[KeyValue]:
    """Return the cached keys and values of each transformer block."""
    return [KeyValue(key, value) for key, value in zip(cache.keys, cache.values, strict=True)]


def memory_tokens(memory: Memory, setup: Setup) -> Part | None:
    """Return a memory's tokens as one part, in the order of keys; None where it is empty.

    Raises:
        UserError: `isolated-causal`, and a token covers latents of two blocks.
    """
    part = memory.joined()
    if part is None or setup.attention != "isolated-causal":
        return part
    return in_causal_order(part, setup.cache_block)


def in_causal_order(part: Part, size: int) -> Part:
    """Return the tokens ordered by the last latent they cover, padding last; equal ones as before.

    Raises:
        UserError: a token covers latents of two blocks of `size`.
    """
    block_numbers(part, size)
    last = torch.where(part.valid, part.last_covered, torch.inf)
    return part.take(last.argsort(dim=1, stable=True))


def block_numbers(part: Part, size: int) -> Tensor:
    """Return the block of latents that each token belongs to, float64 `[B, N]`; padding: infinity.

    Raises:
        UserError: a token covers latents of two blocks of `size`.
    """
    reach = (part.extents[..., 0].to(torch.float64) - 1) / 2
    first, last = part.positions[..., 0] - reach, part.positions[..., 0] + reach
    blocks = blocks_of(last, size)
    split = part.valid & (blocks != blocks_of(first, size))
    if bool(split.any()):
        raise UserError(
            f"a memory token covers latents {float(first[split][0]):g} to "
            f"{float(last[split][0]):g}, which lie in two blocks of backbone.cache_block {size}: "
            f"it must be a multiple of all time rates"
        )
    return torch.where(part.valid, blocks, torch.inf)


def block_groups(part: Part, size: int) -> tuple[BlockGroup, ...]:
    """Return the samples of an ordered part by their blocks: one group where all are alike."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, blocks in enumerate(block_numbers(part, size).cpu()):
        _, counts = blocks[blocks.isfinite()].unique_consecutive(return_counts=True)
        groups.setdefault(tuple(counts.cumsum(0).tolist()), []).append(row)
    return tuple(BlockGroup(tuple(rows), ends) for ends, rows in groups.items())
