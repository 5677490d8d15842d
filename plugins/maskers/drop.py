"""Masking by leaving frames out."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.draws import Draws
from ...core.shapes import Counts
from ..masker_specs import Drop
from .hiding import HidingMasker, per_frame


class DropMasker(HidingMasker[Drop]):
    """Replaces frames outside Ω by zeros or by the mean of each channel: nothing of them is left.

    Their level is 1. An LR latent whose level lies between (`lr_level: mean`) is blended.
    """

    def hide(self, x: Tensor, level: Tensor, length: Counts, draws: Draws) -> Tensor:
        """Give (1 − level)·x + level·fill."""
        t = per_frame(level)
        if self.spec.fill == "zeros":
            return (1 - t) * x
        fill = torch.stack([_mean(one, int(n)) for one, n in zip(x, length, strict=True)])
        return (1 - t) * x + t * fill


def _mean(frames: Tensor, length: int) -> Tensor:
    """Give the mean of each channel over the first `length` frames, `[C, 1, 1, 1]`."""
    return frames[:, :length].mean(dim=(1, 2, 3), keepdim=True)
