"""Structural similarity."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from ...core.errors import UserError
from ...core.metric import Metric
from ..specs import Ssim

WINDOW = 11


class SsimMetric(Metric[Ssim]):
    """SSIM of each frame, −1 to 1: Gaussian window of 11 pixels, σ 1.5 (Wang et al. 2004).

    The mean is over colours and the whole frame, edges mirrored; some tools leave edges out.
    """

    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Give one value a frame.

        Raises:
            UserError: frames are smaller than the window.
        """
        if min(reference.shape[-2:]) < WINDOW:
            height, width = reference.shape[-2:]
            raise UserError(f"SSIM needs frames of {WINDOW}x{WINDOW} or more, not {height}x{width}")
        found = structural_similarity_index_measure(
            result.float(), reference.float(), data_range=1.0, reduction="none"
        )
        return cast(Tensor, found).reshape(reference.shape[0])
