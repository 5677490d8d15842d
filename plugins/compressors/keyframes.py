"""Keyframes: every so many latents, or the first of each shot, as they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core.compressor import State
from ...core.errors import UserError
from ...core.fit import Fit, Length, Needs
from ...core.grid import Geometry, Size3, ceil_div
from ...core.history import History
from ...core.memory import Memory
from ...core.streams import Streamed, emptied
from ..compressor_specs import Keyframes
from .keyframes_kept import Newest


class KeyframesCompressor(Streamed[Keyframes]):
    """One part, `keyframes`: the DiT's own tokens of the newest keyframes, oldest first.

    The first latent is a keyframe, and from there every `every`-th; with `shots` the count starts
    again at the first latent that lies wholly behind a cut. A new keyframe drives the oldest out,
    so nothing settles; the state holds the latents of the keyframes.
    """

    settles = False

    def __init__(self, spec: Keyframes, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.kept = Newest(fit, name="keyframes", newest=spec.newest, rate=spec.rate)

    @classmethod
    def needs(cls, spec: Keyframes) -> Needs:
        """Give the full-size latents."""
        return Needs()

    @classmethod
    def context_length(cls, spec: Keyframes, geometry: Geometry, size: Size3) -> Length:
        """Give the number of tokens; a bound with `shots`, since cuts are not known before."""
        cells = spec.rate.token_grid(size, geometry.patch)
        count = size.time
        if not spec.shots:
            count = min(count, ceil_div(count, spec.every) if spec.every else 1)
        frames = min(count, spec.newest)
        return Length(tokens=frames * cells.height * cells.width, exact=not spec.shots)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; keyframes stay pending, so the part given has no tokens.

        Raises:
            UserError: `shots` is on and nobody looked for cuts in the history.
        """
        new = self.kept.take(state, chunk, self.picked(chunk))
        return new, emptied(self.kept.memory(new))

    def pending(self, state: State) -> Memory:
        """Give the tokens of the newest keyframes."""
        return self.kept.memory(state)

    def picked(self, chunk: History) -> Tensor:
        """Give which latents of a chunk are keyframes, `[B, T]`."""
        end = chunk.offset + chunk.size.time
        begins = torch.zeros(chunk.batch, end, dtype=torch.int64)
        for row, first in enumerate(self._shots(chunk)):
            inside = [latent for latent in first if 0 < latent < end]
            begins[row, inside] = torch.tensor(inside, dtype=torch.int64)
        behind = (torch.arange(end) - begins.cummax(dim=1).values)[:, chunk.offset :]
        return behind % self.spec.every == 0 if self.spec.every else behind == 0

    def _shots(self, chunk: History) -> list[list[int]]:
        """Give the first latents of the shots of each sample, counted in the window."""
        if not self.spec.shots:
            return [[] for _ in range(chunk.batch)]
        if len(chunk.cuts) != chunk.batch:
            raise UserError(
                "keyframes of shots need the times of cuts, which this history has not: "
                "cache with cache.cuts=true, or set shots=false"
            )
        pairs = zip(chunk.cuts, chunk.start.tolist(), strict=True)
        return [[first_latent(self.geometry, c) - start for c in cuts] for cuts, start in pairs]


def first_latent(geometry: Geometry, seconds: float) -> int:
    """Give the first latent of a video that shows nothing from before a time.

    Latent i ≥ 1 shows frames s(i − 1) + 1 … si at a time stride s, latent 0 frame 0.
    """
    frame = math.ceil(round(geometry.fps * seconds, 6))
    return 1 + ceil_div(frame - 1, geometry.vae_stride.time) if frame > 0 else 0
