"""Floor `mean-frame`: what is known without any memory of time."""

from __future__ import annotations

import torch

from ...core.codec import from_bytes
from ...core.fit import Needs
from ...core.retriever import PixelFrames, Retriever, Scene
from ...core.shapes import Frames
from ..specs import MeanFrame
from .floors import frames_asked, frames_in, pixels_of


class MeanFrameRetriever(Retriever[MeanFrame]):
    """Gives the mean of all frames of the window, whatever is asked (design §6)."""

    learned = False

    @classmethod
    def needs(cls, spec: MeanFrame) -> Needs:
        """Give pixels."""
        return Needs(pixels=True)

    def numbers(self, scene: Scene) -> int:
        """Give the colours of one frame."""
        return pixels_of(scene.history, "mean-frame")[0, :, 0].numel()

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> PixelFrames:
        """Give the frames of Ω, all alike, from the pixels of the history.

        Raises:
            UserError: the history has no pixels.
            ValueError: Ω differs over the batch.
        """
        stride = scene.codec.stride.time
        count = len(frames_asked(omega, stride))
        pixels = pixels_of(scene.history, "mean-frame")
        real = frames_in(scene.history.length, stride).tolist()
        means = [_mean(video[:, :n]) for video, n in zip(pixels, real, strict=True)]
        mean = torch.stack(means)[:, :, None]
        return PixelFrames(pixels=mean.expand(-1, -1, count, -1, -1))


def _mean(video: torch.Tensor) -> torch.Tensor:
    """Give the mean of `[3, F, P, Q]` over time, frame by frame so that no float copy is made."""
    total = torch.zeros_like(video[:, 0], dtype=torch.float32)
    for frame in video.unbind(dim=1):
        total += from_bytes(frame)
    return total / video.shape[1]
