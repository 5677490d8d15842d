"""A sliding window: the newest latents as they are."""

from __future__ import annotations

import torch

from ...core.compressor import State
from ...core.fit import Fit, Length, Needs
from ...core.grid import Geometry, Rate, Size3
from ...core.history import History
from ...core.memory import Memory
from ...core.streams import Streamed, emptied
from ..compressor_specs import Window
from .keyframes_kept import Newest

EACH = Rate(height=1, width=1, time=1)


class WindowCompressor(Streamed[Window]):
    """One part, `window-<n>`: the DiT's own tokens of the newest n latents, oldest first.

    Every new latent drives one out, so nothing settles; the state holds the n latents.

    Source: method.md §5: beside a compressed memory, 3 latents give continuous shots.
    """

    settles = False

    def __init__(self, spec: Window, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.kept = Newest(fit, name=f"window-{spec.latents}", newest=spec.latents, rate=EACH)

    @classmethod
    def needs(cls, spec: Window) -> Needs:
        """Give the full-size latents."""
        return Needs()

    @classmethod
    def context_length(cls, spec: Window, geometry: Geometry, size: Size3) -> Length:
        """Give the exact number of tokens: those of n uncompressed latents."""
        cells = EACH.token_grid(size, geometry.patch)
        return Length(tokens=min(size.time, spec.latents) * cells.height * cells.width)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; what is kept stays pending, so the part given has no tokens."""
        every = torch.ones(chunk.batch, chunk.size.time, dtype=torch.bool)
        new = self.kept.take(state, chunk, every)
        return new, emptied(self.kept.memory(new))

    def pending(self, state: State) -> Memory:
        """Give the tokens of the newest latents."""
        return self.kept.memory(state)
