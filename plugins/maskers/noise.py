"""Masking by noise, as the paper pretrains (Eq. 3)."""

from __future__ import annotations

from torch import Tensor

from ...core.draws import Draws
from ...core.flow import interpolate
from ...core.shapes import Counts
from ..masker_specs import Noise
from .hiding import GradedMasker, per_frame


class NoiseMasker(GradedMasker[Noise]):
    """Noises all latents outside Ω by Eq. 1, each frame at a level of its own (method.md §2, §3).

    LR latents and pixels get noise of their own.
    """

    def hide(self, x: Tensor, level: Tensor, length: Counts, draws: Draws) -> Tensor:
        """Give (1 − level)·x + level·ε; ε is drawn on CPU in float32."""
        noise = draws.normal(*x.shape[1:])
        return interpolate(x, noise.to(x), per_frame(level))
