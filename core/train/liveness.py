"""Liveness: every memory parameter has a gradient and moves (method.md §7)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from attrs import define, field
from torch import Tensor
from torch.nn import Parameter

from ..errors import LongtakeError
from .distributed import whole
from .loss import StageOne

STEPS = 2  # a zero-initialised output lets gradients through from the second step on


class DeadMemory(LongtakeError):
    """Some parameters of the memory get no gradient or do not move."""


@define
class Liveness:
    """Watches the parameters of φ and the adapters of G over the first steps with memory.

    Attributes:
        before: the parameters as they were; empty when the watch is over.
        within: steps after which all must live, `STEPS` or more (`Backbone.awake_within`).
        seen: steps with memory so far.
        alive: names of parameters that had a gradient.
    """

    before: dict[str, Tensor] = field(repr=False)
    within: int = STEPS
    seen: int = 0
    alive: set[str] = field(factory=set)

    @property
    def passed(self) -> bool:
        """Whether the watch is over."""
        return self.seen >= STEPS and not self.before

    @classmethod
    def of(cls, stage: StageOne) -> Liveness:
        """Return a watch on a stage that has not trained yet."""
        named = memory_parameters(stage)
        before = {name: whole(p.detach()).cpu().clone() for name, p in named.items()}
        return cls(before, within=max(STEPS, stage.backbone.awake_within))

    def after_backward(self, parameters: Mapping[str, Parameter]) -> None:
        """Note which parameters have a gradient that is not all zero."""
        if not self.passed:
            self.alive |= {n for n, p in parameters.items() if p.grad is not None and _any(p.grad)}

    def after_step(self, parameters: Mapping[str, Parameter]) -> None:
        """Count a step with memory; from the second one on, the watch ends when all live.

        Raises:
            DeadMemory: after `within` steps, some had no gradient in any, or did not change.
        """
        if self.passed:
            return
        self.seen += 1
        if self.seen < STEPS:
            return
        still = {
            n for n, p in parameters.items() if torch.equal(whole(p.detach()).cpu(), self.before[n])
        }
        dead = sorted((set(parameters) - self.alive) | still)
        if dead and self.seen < self.within:
            return
        self.before.clear()
        if dead:
            raise DeadMemory(
                f"{len(dead)} of {len(parameters)} memory parameters are dead after "
                f"{self.seen} steps: {', '.join(dead[:5])}{' ...' if len(dead) > 5 else ''}"
            )


def memory_parameters(stage: StageOne) -> dict[str, Parameter]:
    """Return the trainable parameters that make and read memory: φ's, and the adapters of G."""
    encoder = {f"memory.{n}": p for n, p in stage.encoder.named_parameters()}
    adapters = {f"backbone.{n}": p for n, p in stage.backbone.adapters().items()}
    return {n: p for n, p in {**encoder, **adapters}.items() if p.requires_grad}


def _any(gradient: Tensor) -> bool:
    return bool((whole(gradient) != 0).any())
