"""memory_gain: what the loss says of the memory (method.md §7: memory that silently does nothing).

The same queries and noise are scored with the true memory, with another sample's tokens at the
same places, and with none. gain = loss without − loss with.
"""

from __future__ import annotations

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..memory import Memory
from ..query import Query
from .stage import Draw, StageOne


@frozen(eq=False, kw_only=True)
class Gain:
    """Losses `[B]` of one draw with the true, a shuffled and no memory."""

    true: Tensor
    shuffled: Tensor
    none: Tensor

    @property
    def gain(self) -> Tensor:
        """Loss without memory minus loss with it, `[B]`; above 0 the memory helps."""
        return self.none - self.true

    @property
    def specific(self) -> Tensor:
        """Loss with another sample's memory minus loss with the true one, `[B]`."""
        return self.shuffled - self.true


@torch.no_grad()
def memory_gain(stage: StageOne, query: Query, draw: Draw) -> Gain:
    """Give the losses of one draw with the three memories; needs two samples or more."""
    memory = stage.encoder(query.history)
    return Gain(
        true=stage.loss(query, memory, draw),
        shuffled=stage.loss(query, shuffled(memory), draw),
        none=stage.loss(query, Memory(), draw),
    )


def shuffled(memory: Memory) -> Memory:
    """Give each sample the tokens of the next one, at its own positions."""
    return attrs.evolve(
        memory,
        parts=tuple(
            attrs.evolve(
                part,
                tokens=part.tokens.roll(1, dims=0),
                features={name: x.roll(1, dims=0) for name, x in part.features.items()},
            )
            for part in memory.parts
        ),
    )
