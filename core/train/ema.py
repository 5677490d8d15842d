"""EMA: an average of the weights over the steps, which is what a run gives out.

The weights that train stay as the optimizer left them; the average is written to the files that
users read and measures `memory_gain`, since that is the model they get.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from attrs import define
from torch import Tensor, nn
from torch.nn import Parameter

from ..errors import UserError
from ..tools.files import open_tensors, read_header, write_tensors
from .distributed import part_of, whole_tree


def trained(module: nn.Module) -> dict[str, Parameter]:
    """Return all that trains, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def decay_at(decay: float, updates: int) -> float:
    """Return the decay after so many updates: short at first, so that a short run profits too."""
    return min(decay, (1 + updates) / (10 + updates))


@define
class Average:
    """The average of some weights, in fp32.

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
    def of(cls, weights: Mapping[str, Parameter], decay: float) -> Average:
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
    def shown(self) -> Iterator[None]:
        """Put the average in the place of the weights for a while; then the weights again."""
        raw = {name: weight.detach().clone() for name, weight in self.weights.items()}
        try:
            put(self.weights, self.mean)
            yield
        finally:
            put(self.weights, raw)

    def whole(self) -> Average:
        """Return the average and its weights with the parts of all processes, to be saved."""
        weights = whole_tree({name: p.detach() for name, p in self.weights.items()})
        return Average(self.decay, weights, whole_tree(self.mean), self.updates)

    def save(self, path: Path) -> None:
        """Write the average, whole or not at all."""
        write_tensors(path, self.mean, {"updates": self.updates})

    def load(self, path: Path) -> None:
        """Read an average that `save` wrote.

        Raises:
            UserError: the file is missing, damaged, or of other weights.
        """
        with open_tensors(path) as file:
            self.updates = int(read_header(file, path)["updates"])
        put(self.mean, read_like(path, self.mean))


@torch.no_grad()
def put(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into tensors of the same names."""
    for name, target in targets.items():
        target.copy_(part_of(values[name], target))


def read_like(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file that must hold those of `wanted`, by name and shape.

    Raises:
        UserError: the file is missing, damaged, or holds others.
    """
    with open_tensors(path) as file:
        found = {name: file.get_tensor(name) for name in file.keys()}
    shapes = {name: tensor.shape for name, tensor in found.items()}
    expected = {name: tensor.shape for name, tensor in wanted.items()}
    if shapes != expected:
        odd = min(n for n in shapes | expected if shapes.get(n) != expected.get(n))
        raise UserError(f"{path} holds other weights than this run trains, such as {odd}")
    return found
