"""Structural similarity on several scales."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from ...core.metric import Metric
from ..specs import MsSsim
from .ssim import WINDOW

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest scale first


class MsSsimMetric(Metric[MsSsim]):
    """MS-SSIM of each frame, 0 to 1 (Wang et al. 2003), with as many scales as the spec says.

    Five scales are the standard and need frames of 176 pixels. Fewer keep the finest, with the
    standard weights divided by their sum: such figures compare only with those of as many scales,
    so the title says how many. Where structures are opposed the figure is 0.
    """

    @property
    def title(self) -> str:
        """Say the number of scales."""
        return f"MS-SSIM ({self.spec.scales} scale{'s' if self.spec.scales > 1 else ''})"

    @property
    def least(self) -> int:
        """The window must fit the coarsest scale; torchmetrics asks for more from 4 scales on."""
        halved = self.spec.scales - 1
        return WINDOW * max(1 << halved, halved * halved)

    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Give one value a frame; frames have `least` rows and columns or more."""
        kept = BETAS[: self.spec.scales]
        found = multiscale_structural_similarity_index_measure(
            result.float(),
            reference.float(),
            data_range=1.0,
            reduction="none",
            betas=tuple(beta / sum(kept) for beta in kept),
            normalize="relu",
        )
        return cast(Tensor, found).reshape(reference.shape[0])
