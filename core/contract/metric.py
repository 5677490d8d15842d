"""The contract of metrics: one finite value a frame in bounds, better where frames are nearer."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..interfaces.metric import Metric, merit
from ..interfaces.spec import MetricSpec
from .samples import first_line, names_plugin, require, require_close, require_shape

FRAMES, SIDE = 3, 64


@names_plugin
@torch.no_grad()
def check_metric(metric: Metric[MetricSpec]) -> None:
    """Check that a metric keeps the contract of `core.interfaces.metric.Metric`.

    Raises:
        AssertionError: it does not; one line says what.
    """
    lacking = metric.missing()
    require(not lacking, f"it cannot run here, it needs {lacking}")
    _check_words(metric)
    least = metric.least
    whole = isinstance(least, int) and least >= 1
    require(whole, f"least is {least!r}, must be a whole number of pixels, 1 or more")
    frames = _frames(max(SIDE, least))
    noise = torch.randn(frames.shape, generator=torch.Generator().manual_seed(3))
    before = frames.clone()
    results = [frames] + [(frames + x * noise).clamp(0, 1) for x in (0.02, 0.1, 0.4)]
    values = [_values(metric, frames, result) for result in results]
    _check_flat(metric, torch.zeros_like(frames), torch.ones_like(frames))
    _values(metric, frames, 1 - frames)
    require(torch.equal(frames, before), "the frames that were given were changed in place")
    require_close(_values(metric, frames, results[2]), values[2], 1e-6, "the same frames twice")
    _check_order(metric, values)
    ones = [(frames[i : i + 1], results[2][i : i + 1]) for i in range(FRAMES)]
    alone = [_values(metric, *one) for one in ones]
    require_close(torch.cat(alone), values[2], 1e-4, "a frame alone and the same one among others")
    weights = torch.cat([metric.weight(one) for one, _ in ones])
    line = "the weight of a frame alone and among others"
    require_close(weights, metric.weight(frames), 1e-4, line)
    _check_least(metric)


def _frames(side: int) -> Tensor:
    """Return smooth random frames; some columns more than rows, as videos have."""
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(FRAMES, 3, 8, 8, generator=generator)
    size = (side, side + side // 4)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def _check_words(metric: Metric[MetricSpec]) -> None:
    goal, bounds = metric.goal, metric.bounds
    pair = isinstance(bounds, tuple) and len(bounds) == 2
    require(pair, f"its bounds are {bounds!r}, must be a pair: the least and the greatest")
    low, high = bounds
    number = isinstance(goal, int | float) and not isinstance(goal, bool)
    require(
        goal in ("higher", "lower") or number,
        f'its goal is {goal!r}, must be "higher", "lower" or a number',
    )
    require(low < high, f"its bounds are {low} and {high}, must be the least and the greatest")
    if not isinstance(goal, str):
        require(low <= goal <= high, f"its goal {goal:g} is not in its bounds {low:g} to {high:g}")


def _check_least(metric: Metric[MetricSpec]) -> None:
    """Check that frames of `least` rows and columns have values."""
    small = _frames(metric.least)
    try:
        _values(metric, small, small.flip(0))
    except AssertionError:
        raise
    except Exception as error:  # of a stranger's code
        why = f"{type(error).__name__}: {first_line(error) or 'no message'}"
        side = f"{metric.least}×{metric.least}"
        raise AssertionError(f"least: it fails on frames of {side} pixels ({why})") from error


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
    kind = values.dtype
    real = kind != torch.bool and not kind.is_complex
    require(real, f"what the metric gives is {kind}, must be numbers")
    low, high = metric.bounds
    slack = 1e-4 * max(1.0, *(abs(x) for x in (low, high) if math.isfinite(x)))
    least, most = float(values.min()), float(values.max())
    line = f"it gives {least:.4g} to {most:.4g}, outside of its bounds {low:g} to {high:g}"
    require(low - slack <= least and most <= high + slack, line)
    require_shape(weight, (len(reference),), "the weight of the frames (one value a frame)")
    require(bool((weight > 0).all()), "the weight of a frame is not above 0")
    return values
