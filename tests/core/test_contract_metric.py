"""The contract of metrics catches each kind of wrong one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longtake.core.contract import check_metric
from longtake.core.interfaces.metric import Metric
from longtake.core.interfaces.spec import MetricSpec


class Error(Metric[MetricSpec]):
    """The mean absolute error, a sound metric."""

    goal = "lower"
    bounds = (0.0, 1.0)

    def __call__(self, reference: Tensor, result: Tensor) -> Tensor:
        return (result - reference).abs().mean(dim=(1, 2, 3))


class TooFar(Error):
    def __call__(self, reference: Tensor, result: Tensor) -> Tensor:
        return 3 * super().__call__(reference, result)


class BelowZero(Error):
    def __call__(self, reference: Tensor, result: Tensor) -> Tensor:
        return super().__call__(reference, result) - 0.01


class WrongWay(Error):
    goal = "higher"


class NoGoal(Error):
    goal: Any = "less"


class GoalOutside(Error):
    goal = 2.0


class NotItsGoal(Error):
    goal = 0.5


class EmptyBounds(Error):
    bounds = (1.0, 0.0)


class MoreThanItsLeast(Error):
    def __call__(self, reference: Tensor, result: Tensor) -> Tensor:
        pooled = torch.nn.functional.avg_pool2d(result - reference, 16)
        return pooled.abs().mean(dim=(1, 2, 3))


class MixesFrames(Error):
    def weight(self, reference: Tensor) -> Tensor:
        spread = reference.var(dim=(1, 2, 3)) + 0.1
        return spread / spread.max()


class NeverTheSame(Error):
    def __call__(self, reference: Tensor, result: Tensor) -> Tensor:
        return super().__call__(reference, result) * (1 - 1e-3 * torch.rand(()))


class NoTensor(Error):
    def __call__(self, reference: Tensor, result: Tensor) -> Any:
        return [float(x) for x in super().__call__(reference, result)]


class NoWeights(Error):
    def weight(self, reference: Tensor) -> Any:
        return None


class TrueOrFalse(Error):
    def __call__(self, reference: Tensor, result: Tensor) -> Tensor:
        return super().__call__(reference, result) > 0.1


class OneBound(Error):
    bounds: Any = (0.0,)


class LeastInWords(Error):
    least: Any = "64"


class Fails(Error):
    def __call__(self, reference: Tensor, result: Tensor) -> Tensor:
        raise KeyError("no\nsuch key")


WRONG = [
    (NoTensor, r"is a list, must be a tensor \(3,\)"),
    (NoWeights, "the weight of the frames .* is a NoneType, must be a tensor"),
    (TrueOrFalse, "what the metric gives is torch.bool, must be numbers"),
    (OneBound, r"its bounds are \(0.0,\), must be a pair"),
    (LeastInWords, "least is '64', must be a whole number"),
    (Fails, r"KeyError: 'no.*such key' \(line \d+, in __call__\)"),
    (TooFar, "it gives .* outside of its bounds 0 to 1"),
    (BelowZero, "it gives .* outside of its bounds 0 to 1"),
    (WrongWay, "equal frames are not better than noisier ones .its goal is higher"),
    (NoGoal, "its goal is 'less', must be"),
    (GoalOutside, "its goal 2 is not in its bounds 0 to 1"),
    (NotItsGoal, "its goal is 0.5|its goal and equal frames"),
    (EmptyBounds, "its bounds are 1.0 and 0.0"),
    (MoreThanItsLeast, "least: it fails on frames of 1×1 pixels"),
    (MixesFrames, "the weight of a frame alone and among others"),
    (NeverTheSame, "the same frames twice"),
]


def test_a_sound_metric_passes() -> None:
    check_metric(Error(MetricSpec()))


@pytest.mark.parametrize(("wrong", "line"), WRONG, ids=lambda x: getattr(x, "__name__", ""))
def test_each_wrong_metric_is_caught(wrong: type[Metric[MetricSpec]], line: str) -> None:
    with pytest.raises(AssertionError, match=line) as caught:
        check_metric(wrong(MetricSpec()))
    said = str(caught.value)
    assert "\n" not in said and said.startswith(f"{wrong.__name__} ({__file__}): ")
