"""Draws: random numbers that do not depend on how a batch is dealt over processes (design §8)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Self

import torch
from attrs import frozen
from torch import Tensor


@frozen(eq=False, kw_only=True)
class Draws:
    """Random numbers of a batch: what its samples share, and what each draws for itself.

    A sample's own numbers follow from its place in the step's whole batch, so that its loss is
    the same in whatever process or micro-batch it is worked on. Generators are CPU generators, so
    that a run is the same on every device.

    Attributes:
        shared: for what all samples of a step have in common, such as K of Ω `[B, K]`.
        each: one for every sample, in order, B in all.
    """

    shared: torch.Generator
    each: tuple[torch.Generator, ...]

    @classmethod
    def of(cls, seed: int, step: int, places: Sequence[int], salt: str) -> Self:
        """Return the numbers of the samples at these places of a step's batch, for one purpose."""
        return cls(
            shared=step_generator(seed, step, -1, salt),
            each=tuple(step_generator(seed, step, place, salt) for place in places),
        )

    @classmethod
    def single(cls, generator: torch.Generator) -> Self:
        """Return the numbers of a batch of one sample, all from one generator."""
        return cls(shared=generator, each=(generator,))

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers `[B, *shape]`, float32 on CPU."""
        return self._filled(shape, lambda row, generator: row.normal_(generator=generator))

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1) `[B, *shape]`, float32 on CPU."""
        return self._filled(shape, lambda row, generator: row.uniform_(generator=generator))

    def stack(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Return `draw` of every sample's generator, stacked along a first axis B."""
        return torch.stack([draw(generator) for generator in self.each])

    def _filled(
        self, shape: tuple[int, ...], fill: Callable[[Tensor, torch.Generator], object]
    ) -> Tensor:
        out = torch.empty(len(self.each), *shape, dtype=torch.float32, device="cpu")
        for row, generator in zip(out, self.each, strict=True):
            fill(row, generator)
        return out


def step_generator(seed: int, step: int, place: int, salt: str) -> torch.Generator:
    """Return the random numbers of one sample of a step for one purpose, the same on resume."""
    number = random.Random(f"{salt}-{seed}-{step}-{place}").getrandbits(63)
    return torch.Generator().manual_seed(number)


def drops_memory(seed: int, step: int, chance: float) -> bool:
    """Return whether the batch of a step reads no memory: drawn from the step, on all ranks."""
    generator = step_generator(seed, step, 0, "dropout")
    return bool(torch.rand((), generator=generator) < chance)
