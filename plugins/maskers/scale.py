"""Masking by scaling the range of values."""

from __future__ import annotations

from torch import Tensor

from ...core.draws import Draws
from ...core.shapes import Counts
from ..masker_specs import Scale
from .hiding import GradedMasker, per_frame


class ScaleMasker(GradedMasker[Scale]):
    """Shrinks the values of frames outside Ω towards 0: contrast goes, structure stays.

    A masked frame keeps its content up to its level, so an encoder that is told no level can
    still read it where the level is not 1: a weaker mask than noise. Named, without numbers, as an
    alternative in the paper (method.md §3); that it means values, not sizes, is our reading.
    """

    def hide(self, x: Tensor, level: Tensor, length: Counts, draws: Draws) -> Tensor:
        """Give (1 − level)·x."""
        return (1 - per_frame(level)) * x
