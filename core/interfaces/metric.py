"""Metric: how near a retrieved frame is to the original."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Literal, TypeAlias, TypeVar, overload

import torch
from jaxtyping import Float
from torch import Tensor

from .checks import check_shape
from .spec import MetricSpec

S = TypeVar("S", bound=MetricSpec)
Goal: TypeAlias = Literal["higher", "lower"] | float


class Metric(ABC, Generic[S]):
    """One figure a frame; built as `cls(spec)`.

    A plugin answers `__call__` and sets what of the following is not the default.

    `unit` is printed behind the figure ("dB" or ""). `goal` says what is good: "higher", "lower",
    or a number, which frames equal to the original have: the nearer to it the better. `bounds` are
    the least and the greatest figure that there can be.

    The figure of several frames is the mean of theirs, each counted by its `weight`. A ratio gives
    as weight what it divides by: its mean is then the ratio of the sums, and frames in which there
    is little to compare do not drown the rest.

    Reports say "RETRIEVER verb FIGURE quantity", such as "flow gives 19.1 dB PSNR"; a metric may
    set `verb`, and `quantity` where its title is not what is counted.
    """

    unit: ClassVar[str] = ""
    goal: ClassVar[Goal] = "higher"
    bounds: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    verb: ClassVar[str] = "gives"

    def __init__(self, spec: S) -> None:
        self.spec = spec

    @property
    def title(self) -> str:
        """What reports call it; "": the plugin's name in capitals."""
        return ""

    @property
    def quantity(self) -> str:
        """What a figure is of, in a sentence; "": the title."""
        return ""

    @property
    def least(self) -> int:
        """The fewest rows and columns of pixels that a frame may have."""
        return 1

    def missing(self) -> str:
        """Return what is missing on this machine to run it, in words; "": nothing.

        Where something is, the metric is reported as "not measured" and never called.
        """
        return ""

    def weight(self, reference: Float[Tensor, "F 3 P Q"]) -> Float[Tensor, " F"]:
        """Return how much each frame counts, finite and above 0; all alike unless overridden."""
        return torch.ones(len(reference), device=reference.device)

    def score(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> tuple[Tensor, Tensor]:
        """Return the figures and weights of frames, each `[F]`: the plugin's, shapes checked.

        Raises:
            ContractError: there is not one figure and one weight a frame.
        """
        values, weights = self(reference, result), self.weight(reference)
        check_shape(self, "its figures", values, (len(reference),), "F")
        check_shape(self, "its weights", weights, (len(reference),), "F")
        return values, weights

    @abstractmethod
    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Return one finite value a frame; both are RGB in [0, 1], as float32."""


@overload
def merit(goal: Goal, value: float) -> float: ...
@overload
def merit(goal: Goal, value: Tensor) -> Tensor: ...


def merit(goal: Goal, value: float | Tensor) -> float | Tensor:
    """Return a figure so that more is better: as it is, negated, or minus the way to a goal."""
    if goal == "higher":
        return value
    if goal == "lower":
        return -value
    gap = value - float(goal)
    return -gap.abs() if isinstance(gap, Tensor) else -abs(gap)
