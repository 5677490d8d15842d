"""Metrics of pixels: PSNR, SSIM, MS-SSIM, and the energy of fine detail."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from ...core.interfaces.metric import Metric
from ...core.tools.words import counted
from .specs import HighBand, MsSsim, Psnr, Ssim

WINDOW = 11  # pixels of the Gaussian window of SSIM
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest scale first
ROUNDING = (1 / 255) ** 2 / 12  # mean square of what 8 bits round off


class PsnrMetric(Metric[Psnr]):
    """PSNR of each frame over all pixels and colours, dB; equal frames get the spec's ceiling."""

    unit = "dB"
    bounds = (0.0, math.inf)

    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Return dB a frame, at most `ceiling`."""
        decibels = peak_signal_noise_ratio(
            result.float(), reference.float(), data_range=1.0, reduction="none", dim=(1, 2, 3)
        )
        return cast(Tensor, decibels).clamp(max=self.spec.ceiling)


class SsimMetric(Metric[Ssim]):
    """SSIM of each frame, −1 to 1: Gaussian window of 11 pixels, σ 1.5 (Wang et al. 2004).

    The mean is over colours and the whole frame, edges mirrored; some tools leave edges out.
    """

    bounds = (-1.0, 1.0)

    @property
    def least(self) -> int:
        """The window must fit."""
        return WINDOW

    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Return one value a frame; frames have `least` rows and columns or more."""
        similarity = structural_similarity_index_measure(
            _channels_last(result), _channels_last(reference), data_range=1.0, reduction="none"
        )
        return cast(Tensor, similarity).reshape(reference.shape[0])


class MsSsimMetric(Metric[MsSsim]):
    """MS-SSIM of each frame, 0 to 1 (Wang et al. 2003), with as many scales as the spec says.

    Five scales are the standard and need frames of 176 pixels. Fewer keep the finest, with the
    standard weights divided by their sum: such figures compare only with those of as many scales,
    so the title says how many. Where structures are opposed the figure is 0.
    """

    bounds = (0.0, 1.0)

    @property
    def title(self) -> str:
        """The name with the number of scales."""
        return f"MS-SSIM ({counted(self.spec.scales, 'scale')})"

    @property
    def least(self) -> int:
        """The window must fit the coarsest scale; torchmetrics asks for more from 4 scales on."""
        halved = self.spec.scales - 1
        return WINDOW * max(1 << halved, halved * halved)

    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Return one value a frame; frames have `least` rows and columns or more."""
        betas = BETAS[: self.spec.scales]
        similarity = multiscale_structural_similarity_index_measure(
            _channels_last(result),
            _channels_last(reference),
            data_range=1.0,
            reduction="none",
            betas=tuple(beta / sum(betas) for beta in betas),
            normalize="relu",
        )
        return cast(Tensor, similarity).reshape(reference.shape[0])


class HighBandMetric(Metric[HighBand]):
    """Energy in the high spatial band of a frame over that of the original; 1 is as much detail.

    The band is what is lost by shrinking a frame `factor` times (box mean) and enlarging it again
    (bilinear): detail that no LR branch of such a rate can hold. Energy is its mean square over
    pixels and colours. Frames count by the original's energy, so that a clip's figure is the ratio
    of the sums over its frames. The error of 8-bit rounding is added to both energies: flat
    frames, which have no detail to lose, give 1.
    """

    goal = 1.0
    bounds = (0.0, math.inf)
    verb = "holds"

    @property
    def title(self) -> str:
        """The name with the factor."""
        return f"high band ({self.spec.factor}×)"

    @property
    def quantity(self) -> str:
        """A share of the original's energy."""
        return f"of the original's energy in the {self.title}"

    def weight(self, reference: Float[Tensor, "F 3 P Q"]) -> Float[Tensor, " F"]:
        """Return the original's energy, which figures are ratios to."""
        return energy(reference, self.spec.factor)

    def __call__(
        self, reference: Float[Tensor, "F 3 P Q"], result: Float[Tensor, "F 3 P Q"]
    ) -> Float[Tensor, " F"]:
        """Return the ratio of energies of each frame, above 0."""
        return energy(result, self.spec.factor) / energy(reference, self.spec.factor)


def _channels_last(frames: Float[Tensor, "F 3 P Q"]) -> Float[Tensor, "F 3 P Q"]:
    """Return frames as floats in the layout in which a CPU filters each colour fastest (2.3×)."""
    return frames.float().to(memory_format=torch.channels_last)


def energy(frames: Float[Tensor, "F 3 P Q"], factor: int) -> Float[Tensor, " F"]:
    """Return the mean square of the high band of each frame, above 0."""
    lost = high_band(frames.float(), factor)
    return lost.square().mean(dim=(1, 2, 3)) + ROUNDING


def high_band(frames: Float[Tensor, "F 3 P Q"], factor: int) -> Float[Tensor, "F 3 P Q"]:
    """Return what shrinking by `factor` and enlarging takes from frames; edges are replicated."""
    rows, columns = frames.shape[-2:]
    whole = F.pad(frames, (0, -columns % factor, 0, -rows % factor), mode="replicate")
    small = F.avg_pool2d(whole, factor)
    large = F.interpolate(small, scale_factor=float(factor), mode="bilinear", align_corners=False)
    return frames - large[..., :rows, :columns]
