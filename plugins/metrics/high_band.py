"""Energy of fine detail: what a memory of low resolution cannot hold."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...core.metric import Metric
from ..specs import HighBand

ROUNDING = (1 / 255) ** 2 / 12  # mean square of what 8 bits round off


class HighBandMetric(Metric[HighBand]):
    """Energy in the high spatial band of a frame over that of the original; 1 is as much detail.

    The band is what is lost by shrinking a frame `factor` times (box mean) and enlarging it again
    (bilinear): detail that no LR branch of such a rate can hold. Energy is its mean square over
    pixels and colours. Frames count by the original's energy, so that a clip's figure is the ratio
    of the sums over its frames. The error of 8-bit rounding is added to both energies: flat
    frames, which have no detail to lose, give 1.
    """

    goal = 1.0

    @property
    def title(self) -> str:
        """Say the factor."""
        return f"high band ({self.spec.factor}×)"

    def weight(self, reference: Float[Tensor, "F 3 P Q"]) -> Float[Tensor, " F"]:
        """Give the original's energy, which figures are ratios to."""
        return energy(reference, self.spec.factor)

    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Give the ratio of energies of each frame, above 0."""
        return energy(result, self.spec.factor) / energy(reference, self.spec.factor)


def energy(frames: Float[Tensor, "F 3 P Q"], factor: int) -> Float[Tensor, " F"]:
    """Give the mean square of the high band of each frame, above 0."""
    lost = high_band(frames.float(), factor)
    return lost.square().mean(dim=(1, 2, 3)) + ROUNDING


def high_band(frames: Float[Tensor, "F 3 P Q"], factor: int) -> Float[Tensor, "F 3 P Q"]:
    """Give what shrinking by `factor` and enlarging takes from frames; edges are replicated."""
    rows, columns = frames.shape[-2:]
    whole = F.pad(frames, (0, -columns % factor, 0, -rows % factor), mode="replicate")
    small = F.avg_pool2d(whole, factor)
    large = F.interpolate(small, scale_factor=float(factor), mode="bilinear", align_corners=False)
    return frames - large[..., :rows, :columns]
