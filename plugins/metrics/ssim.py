"""Structural similarity."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ...core.metric import Metric
from ..specs import Ssim

WINDOW = 11


class SsimMetric(Metric[Ssim]):
    """SSIM of each frame, −1 to 1: Gaussian window of 11 pixels, σ 1.5 (Wang et al. 2004).

    The mean is over colours and the whole frame, edges mirrored; some tools leave edges out.
    """

    @property
    def least(self) -> int:
        """The window must fit."""
        return WINDOW

    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Give one value a frame; frames have `least` rows and columns or more."""
        found = structural_similarity_index_measure(
            result.float(), reference.float(), data_range=1.0, reduction="none"
        )
        return cast(Tensor, found).reshape(reference.shape[0])
