"""Metric: how near a retrieved frame is to the original."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

from jaxtyping import Float
from torch import Tensor

from .spec import MetricSpec

S = TypeVar("S", bound=MetricSpec)


class Metric(ABC, Generic[S]):
    """One figure a frame; built as `cls(spec)`.

    `unit` is printed behind the figure ("dB" or ""), `higher` says which way is better.
    """

    unit: ClassVar[str] = ""
    higher: ClassVar[bool] = True

    def __init__(self, spec: S) -> None:
        self.spec = spec

    @abstractmethod
    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Give one finite value a frame; both are RGB in [0, 1], as float32."""
