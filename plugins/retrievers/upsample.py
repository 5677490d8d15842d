"""Floor `upsample`: the bar that memory has to pass."""

from __future__ import annotations

import torch

from ...core.codec import decode_whole
from ...core.errors import UserError
from ...core.fit import Needs
from ...core.retriever import PixelFrames, Retriever, Scene
from ...core.shapes import Frames
from ..specs import Upsample
from .floors import frames_asked, frames_in, from_lr_video


class UpsampleRetriever(Retriever[Upsample]):
    """Decodes the LR latents and enlarges them: all that the LR branch holds (design §6)."""

    learned = False

    @classmethod
    def needs(cls, spec: Upsample) -> Needs:
        """Give the LR latents of the rate."""
        return Needs(rates=frozenset({spec.rate}))

    def numbers(self, scene: Scene) -> int:
        """Give the numbers of the LR latents."""
        return scene.history.lr[self.spec.rate][0].numel()

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> PixelFrames:
        """Give the frames of Ω, from the LR latents of the history.

        Raises:
            UserError: the history has no LR latents of the rate.
            ValueError: Ω differs over the batch.
        """
        rate, stride = self.spec.rate, scene.codec.stride
        if rate not in scene.history.lr:
            raise UserError(f"upsample needs LR latents at {rate}, which this history lacks")
        asked = frames_asked(omega, stride.time)
        video = decode_whole(scene.codec, scene.history.lr[rate])
        complete = 1 + (scene.history.length - 1) // rate.time
        size = (scene.size.height * stride.height, scene.size.width * stride.width)
        count = frames_in(complete, stride.time)
        pixels = from_lr_video(video, asked, count, rate, size)
        return PixelFrames(pixels=pixels.clamp(-1, 1))
