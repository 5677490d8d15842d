"""EMA: an average of the weights over the steps, which is what a run's checkpoints give out.

The weights that train stay as the optimizer left them; the average is written to the files that
users read and measures `memory_gain`, since that is the model they get.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from attrs import define
from torch import Tensor, nn
from torch.nn import Parameter

from .distributed import full_tree, shard_like


@define
class EMA:
    """The exponential moving average of some weights, in fp32.

    Attributes:
        decay: share of the average that stays at each update, 0 to 1, once `updates` is large.
        weights: what is averaged.
        mean: their average, by the same names.
        updates: how many steps it has seen.
    """

    decay: float
    weights: Mapping[str, Tensor]
    mean: dict[str, Tensor]
    updates: int = 0

    @classmethod
    def of(cls, weights: Mapping[str, Parameter], decay: float) -> EMA:
        """Return the average of weights that have not trained yet: the weights themselves."""
        mean = {name: p.detach().to(torch.float32, copy=True) for name, p in weights.items()}
        return cls(decay, weights, mean)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        share = 1 - decay_at(self.decay, self.updates)
        for name, weight in self.weights.items():
            self.mean[name].lerp_(weight.float(), share)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the weights for a while; then the weights again."""
        raw = {name: weight.detach().clone() for name, weight in self.weights.items()}
        try:
            copy_into(self.weights, self.mean)
            yield
        finally:
            copy_into(self.weights, raw)

    def full(self) -> EMA:
        """Return the average and its weights unsharded, to be saved."""
        weights = full_tree({name: p.detach() for name, p in self.weights.items()})
        return EMA(self.decay, weights, full_tree(self.mean), self.updates)


def decay_at(decay: float, updates: int) -> float:
    """Return the decay after so many updates: short at first, so that a short run profits too."""
    return min(decay, (1 + updates) / (10 + updates))


def trainable_parameters(module: nn.Module) -> dict[str, Parameter]:
    """Return all parameters of a module that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def copy_into(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into tensors of the same names, sharded or not."""
    for name, target in targets.items():
        target.copy_(shard_like(values[name], target))
