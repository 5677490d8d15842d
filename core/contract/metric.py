"""The contract of metrics: one finite value a frame, better where frames are nearer."""

from __future__ import annotations

import torch
from torch import Tensor

from ..interfaces.metric import Metric, merit
from ..interfaces.spec import MetricSpec
from .samples import require, require_close, require_shape

FRAMES, SIDE = 3, 64


@torch.no_grad()
def check_metric(metric: Metric[MetricSpec]) -> None:
    """Check that a metric keeps the contract of `core.interfaces.metric.Metric`.

    Raises:
        AssertionError: it does not; one line says what.
    """
    lacking = metric.missing()
    require(not lacking, f"it cannot run here, it needs {lacking}")
    generator = torch.Generator().manual_seed(2)
    side = max(SIDE, metric.least)
    coarse = torch.rand(FRAMES, 3, 8, 8, generator=generator)
    frames = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    noise = torch.randn(frames.shape, generator=generator)
    before = frames.clone()
    results = [frames] + [(frames + x * noise).clamp(0, 1) for x in (0.02, 0.1, 0.4)]
    values = [_values(metric, frames, result) for result in results]
    _check_flat(metric, torch.zeros_like(frames), torch.ones_like(frames))
    require(torch.equal(frames, before), "the frames that were given were changed in place")
    _check_order(metric, values)
    alone = [_values(metric, frames[i : i + 1], results[2][i : i + 1]) for i in range(FRAMES)]
    require_close(torch.cat(alone), values[2], 1e-4, "a frame alone and the same one among others")


def _check_flat(metric: Metric[MetricSpec], black: Tensor, white: Tensor) -> None:
    """Check that frames without any detail have values, too."""
    for reference, result in ((black, black), (black, white), (white, black)):
        _values(metric, reference, result)


def _check_order(metric: Metric[MetricSpec], values: list[Tensor]) -> None:
    """Check that nearer frames are better, and that equal ones reach a goal that is a number.

    `values` are those of ever noisier frames, of equal ones first.
    """
    merits = [merit(metric.goal, each) for each in values]
    for name, better, worse in zip(("equal", "near"), merits, merits[1:], strict=False):
        line = f"{name} frames are not better than noisier ones (its goal is {metric.goal})"
        require(bool((better > worse).all()), line)
    if not isinstance(metric.goal, str):
        require_close(merits[0], torch.zeros_like(merits[0]), 1e-4, "its goal and equal frames")


def _values(metric: Metric[MetricSpec], reference: Tensor, result: Tensor) -> Tensor:
    values, weight = metric(reference, result), metric.weight(reference)
    require_shape(values, (len(reference),), "what the metric gives (one value a frame)")
    require_shape(weight, (len(reference),), "the weight of the frames (one value a frame)")
    require(bool((weight > 0).all()), "the weight of a frame is not above 0")
    return values
