"""What every metric must hold."""

from __future__ import annotations

import torch
from torch import Tensor

from ..metric import Metric
from ..spec import MetricSpec
from .expect import require, require_close, require_shape

FRAMES, SIDE = 3, 64


@torch.no_grad()
def check_metric(metric: Metric[MetricSpec]) -> None:
    """Make sure that a metric keeps its word: one finite value a frame, better where nearer.

    Raises:
        AssertionError: it does not; one line says what.
    """
    generator = torch.Generator().manual_seed(2)
    coarse = torch.rand(FRAMES, 3, 8, 8, generator=generator)
    frames = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
    noise = torch.randn(frames.shape, generator=generator)
    before = frames.clone()
    results = [frames] + [(frames + x * noise).clamp(0, 1) for x in (0.02, 0.1, 0.4)]
    found = [_values(metric, frames, result) for result in results]
    _values(metric, torch.zeros_like(frames), torch.zeros_like(frames))
    _values(metric, torch.zeros_like(frames), torch.ones_like(frames))
    require(torch.equal(frames, before), "the frames that were given were changed in place")
    sign = 1 if metric.higher else -1
    for name, better, worse in zip(("equal", "near"), found, found[1:], strict=False):
        line = f"{name} frames are not better than noisier ones (higher is {metric.higher})"
        require(bool((sign * better > sign * worse).all()), line)
    alone = [_values(metric, frames[i : i + 1], results[2][i : i + 1]) for i in range(FRAMES)]
    require_close(torch.cat(alone), found[2], 1e-4, "a frame alone and the same one among others")


def _values(metric: Metric[MetricSpec], reference: Tensor, result: Tensor) -> Tensor:
    found = metric(reference, result)
    require_shape(found, (len(reference),), "what the metric gives (one value a frame)")
    return found
