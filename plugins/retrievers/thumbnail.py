"""Floor `thumbnail`: a guide only, since it never passes the codec."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.codec import from_bytes
from ...core.compressor import State
from ...core.data.lowres import LowRes
from ...core.fit import Needs
from ...core.grid import ceil_div
from ...core.retriever import PixelFrames, Retriever, Scene
from ...core.shapes import Bytes, Frames
from ..specs import Thumbnail
from .floors import frames_asked, frames_in, from_lr_video, pixels_of


class ThumbnailRetriever(Retriever[Thumbnail]):
    """Shrinks the raw video by the rate and enlarges it again (design §6)."""

    learned = False
    guide = True

    @classmethod
    def needs(cls, spec: Thumbnail) -> Needs:
        """Give pixels."""
        return Needs(pixels=True)

    def numbers(self, scene: Scene) -> int:
        """Give the colours of the LR video."""
        colours, frames, rows, columns = pixels_of(scene.history, "thumbnail").shape[1:]
        rate, stride = self.spec.rate, scene.codec.stride
        down = ceil_div(rows, rate.height * stride.height) * stride.height
        across = ceil_div(columns, rate.width * stride.width) * stride.width
        return colours * (1 + (frames - 1) // rate.time) * down * across

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> PixelFrames:
        """Give the frames of Ω, from the pixels of the history.

        Raises:
            UserError: the history has no pixels.
            ValueError: Ω differs over the batch.
        """
        rate, stride = self.spec.rate, scene.codec.stride
        asked = frames_asked(omega, stride.time)
        pixels = pixels_of(scene.history, "thumbnail")
        video = _shrunk(pixels, LowRes(rate, stride))
        complete = 1 + (frames_in(scene.history.length, stride.time) - 1) // rate.time
        rows, columns = pixels.shape[-2:]
        return PixelFrames(pixels=from_lr_video(video, asked, complete, rate, (rows, columns)))


def _shrunk(pixels: Bytes, lowres: LowRes) -> Tensor:
    """Give the whole LR video, shrunk a few frames at a time so that floats stay few."""
    state: State | None = None
    parts = []
    for chunk in pixels.split(32, dim=2):
        part, state = lowres.push(from_bytes(chunk), state)
        parts.append(part)
    return torch.cat(parts, dim=2)
