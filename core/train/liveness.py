"""Liveness: every parameter of the memory has a gradient and moves (method.md §7)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import define, field
from torch import Tensor
from torch.nn import Parameter

from ..errors import LongtakeError
from .distributed import full_tensor
from .loss import Stage

LEAST_STEPS = 2  # a zero-initialised output lets gradients through from the second step on
PATIENCE = 10  # times as many steps to move: a gradient behind outputs that were zero is tiny first


class DeadMemory(LongtakeError):
    """Some parameters of the memory get no gradient or do not move."""


@define
class Liveness:
    """A watch on the parameters of φ and the adapters of G over the first steps with memory.

    Attributes:
        before: the parameters as they were; empty when the watch is over.
        within: steps after which all must have had a gradient, `LEAST_STEPS` or more
            (`Backbone.awake_within`).
        steps: with memory, so far.
        alive: names of parameters that had a gradient.
    """

    before: dict[str, Tensor] = field(repr=False)
    within: int = LEAST_STEPS
    steps: int = 0
    alive: set[str] = field(factory=set)

    @property
    def passed(self) -> bool:
        """Whether all was found alive, so that the watch is over."""
        return self.steps >= LEAST_STEPS and not self.before

    @classmethod
    def of(cls, stage: Stage) -> Liveness:
        """Return a watch on a stage that has not trained yet."""
        named = memory_parameters(stage)
        before = {name: full_tensor(p.detach()).cpu().clone() for name, p in named.items()}
        return cls(before, within=max(LEAST_STEPS, stage.backbone.awake_within))

    def after_backward(self, parameters: Mapping[str, Parameter]) -> None:
        """Note which parameters have a gradient that is not all zero."""
        if not self.passed:
            self.alive |= {n for n, p in parameters.items() if _has_gradient(p)}

    def after_step(self, parameters: Mapping[str, Parameter]) -> None:
        """Count a step with memory; from the second one on, the watch ends when all live.

        Raises:
            DeadMemory: after `within` steps some had no gradient in any, or after `PATIENCE` times
                as many some with one did not change.
        """
        if self.passed:
            return
        self.steps += 1
        if self.steps < LEAST_STEPS:
            return
        now = {name: full_tensor(p.detach()).cpu() for name, p in parameters.items()}
        still = {name for name, value in now.items() if torch.equal(value, self.before[name])}
        asleep = set(parameters) - self.alive
        if asleep and self.steps < self.within:
            return
        if still and not asleep and self.steps < PATIENCE * self.within:
            return
        self.before.clear()
        if dead := sorted(asleep | still):
            raise DeadMemory(
                f"{len(dead)} of {len(parameters)} memory parameters are dead after "
                f"{self.steps} steps: {', '.join(dead[:5])}{' ...' if len(dead) > 5 else ''}"
            )


def memory_parameters(stage: Stage) -> dict[str, Parameter]:
    """Return the trainable parameters that make and read memory: φ's, and the adapters of G."""
    encoder = {f"memory.{n}": p for n, p in stage.encoder.named_parameters()}
    adapters = {f"backbone.{n}": p for n, p in stage.backbone.adapters().items()}
    return {n: p for n, p in {**encoder, **adapters}.items() if p.requires_grad}


def _has_gradient(parameter: Parameter) -> bool:
    return parameter.grad is not None and bool((full_tensor(parameter.grad) != 0).any())
