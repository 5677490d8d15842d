"""Memory that sees no later memory: blocks of latents on an absolute grid (`isolated-causal`).

Block 0 is latent 0; block j holds latents b(j − 1) + 1 … bj, as causal tokens do at rate r. A token
belongs to the block of the last latent it covers and attends to all memory of blocks up to its own.
So what a block's keys are is settled once it is complete, whatever comes later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.errors import UserError
from ...core.memory import Part
from .setup import Keys, Masks

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
    """Give the block of each token, float64 `[B, N]`; padding has infinity.

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
    """Give the tokens ordered by the last latent they cover, padding last; equal ones as before.

    Raises:
        UserError: a token covers latents of two blocks of `size`.
    """
    block_numbers(part, size)
    last = torch.where(part.valid, part.last_covered, torch.inf)
    return part.take(last.argsort(dim=1, stable=True))


def groups_of(part: Part, size: int) -> tuple[Group, ...]:
    """Give the samples of an ordered part by their blocks: one group where all are alike."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row, blocks in enumerate(block_numbers(part, size).cpu()):
        _, counts = blocks[blocks.isfinite()].unique_consecutive(return_counts=True)
        found.setdefault(tuple(counts.cumsum(0).tolist()), []).append(row)
    return tuple(Group(tuple(rows), ends) for ends, rows in found.items())


def untouched(part: Part, more: Part, size: int) -> int:
    """Give how many first tokens of the ordered `part` stay as they are if `more` joins it.

    They are the tokens of all blocks before the first that gets a token, in every sample.
    """
    first = block_numbers(more, size).amin(dim=1, keepdim=True)
    return int((block_numbers(part, size) < first).sum(dim=1).min())


def by_block(
    attend: Callable[[Tensor, Keys], Tensor], query: Tensor, keys: Keys, groups: Sequence[Group]
) -> Tensor:
    """Give what each token reads of its own block and those before it, without any mask.

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
