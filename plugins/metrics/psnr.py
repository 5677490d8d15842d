"""Peak signal-to-noise ratio."""

from __future__ import annotations

from typing import cast

from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from ...core.metric import Metric
from ..specs import Psnr


class PsnrMetric(Metric[Psnr]):
    """PSNR of each frame over all pixels and colours, dB; equal frames get the spec's ceiling."""

    unit = "dB"

    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Give dB a frame, at most `ceiling`."""
        found = peak_signal_noise_ratio(
            result.float(), reference.float(), data_range=1.0, reduction="none", dim=(1, 2, 3)
        )
        return cast(Tensor, found).clamp(max=self.spec.ceiling)
