"""Metric `lpips`: learned perceptual distance, an extra that needs torchvision."""

from __future__ import annotations

import functools
import importlib.util
import math
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.interfaces.metric import Metric
from .specs import Lpips

SMALLEST = 64  # pixels; fewer leave AlexNet's last layers nothing


class LpipsMetric(Metric[Lpips]):
    """LPIPS of each frame (Zhang et al. 2018), 0 for equal frames; through torchmetrics.

    It needs torchvision and the ImageNet weights of its network, which torchvision fetches once.
    Where it cannot have them it says so, and nothing is measured.
    """

    goal = "lower"
    bounds = (0.0, math.inf)

    @property
    def least(self) -> int:
        """The network's own limit."""
        return SMALLEST

    def missing(self) -> str:
        """Return what is missing: torchvision, or the weights and why they could not be had."""
        if importlib.util.find_spec("torchvision") is None:
            return "torchvision (the extra longtake[lpips], not installed) and its weights"
        try:
            network(self.spec.net, torch.device("cpu"))
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return (
                f"torchvision's {self.spec.net} with its ImageNet weights, which failed: {reason}"
            )
        return ""

    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Return one distance a frame."""
        net = network(self.spec.net, reference.device)
        distance = net(result.float().clamp(0, 1), reference.float().clamp(0, 1), normalize=True)
        return cast(Tensor, distance).reshape(reference.shape[0])


@functools.cache
def network(name: str, device: torch.device) -> Any:
    """Load the network that compares two batches of frames, one distance a frame."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    metric = LearnedPerceptualImagePatchSimilarity(net_type=name)
    return metric.net.to(device).eval()
