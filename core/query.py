"""What training asks of a model: a Query in Stage I, a Continuation in Stage II (design §2)."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen
from jaxtyping import Float
from torch import Tensor

from .grid import Rate
from .history import History
from .shapes import Frames, Targets
from .text import Text


@frozen(eq=False, kw_only=True)
class Query:
    """Stage I (Eq. 3): give back the frames Ω of a masked history.

    Attributes:
        history: mask(H, Ω): the frames Ω clean, the others masked; the encoder's input.
        text: the caption.
        omega: Ω, latent frames counted inside the window, ascending, int64 `[B, K]`.
        targets: the clean latents of Ω, `[B, C, K, H, W]`.
        levels: noise level of every HR latent frame, `[B, T]`; 0 is clean.
        lr_levels: noise level of every LR latent, `[B, T']` by rate.
    """

    history: History
    text: Text
    omega: Frames
    targets: Targets
    levels: Float[Tensor, "B T"]
    lr_levels: Mapping[Rate, Float[Tensor, "B T"]] = field(factory=dict)

    @property
    def frames(self) -> Frames:
        """Absolute latent frames of the targets, start + Ω, int64 `[B, K]`."""
        return self.history.start[:, None].to(self.omega.device) + self.omega


@frozen(eq=False, kw_only=True)
class Continuation:
    """Stage II (Eq. 4): continue a clean history.

    Attributes:
        history: H, clean and complete; may be empty of latents (T = 0) under memory dropout.
        target: the latents that follow, `[B, C, K, H, W]`.
        frames: their absolute latent frames, int64 `[B, K]`.
        prompt: the storyboard prompt nearest in time.
    """

    history: History
    target: Targets
    frames: Frames
    prompt: Text
