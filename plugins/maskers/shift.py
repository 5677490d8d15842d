"""Masking by translation of values."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.draws import Draws
from ...core.shapes import Counts
from ..masker_specs import Shift
from .hiding import GradedMasker, per_frame


class ShiftMasker(GradedMasker[Shift]):
    """Moves the values of each frame outside Ω by one vector over channels, alike in all cells.

    The direction is random for each frame, of rms 1 over channels; its length is level × `amount`.
    As with `scale`, structure stays, so the mask is weaker than noise. Named, without numbers, as
    an alternative in the paper (method.md §3); that values move, not places, is our reading.
    """

    def hide(self, x: Tensor, level: Tensor, length: Counts, draws: Draws) -> Tensor:
        """Give x + level · amount · direction."""
        normal = draws.normal(x.shape[1], x.shape[2], 1, 1)
        rms = normal.square().mean(dim=1, keepdim=True).sqrt()
        direction = normal / rms.clamp_min(torch.finfo(normal.dtype).tiny)
        return x + self.spec.amount * per_frame(level) * direction.to(x)
