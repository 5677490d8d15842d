"""Floors that a memory must pass: retrievers that read the history itself, not the memory.

`upsample` is the bar, all that the LR branch holds; `thumbnail` is a guide only, since it never
passes the codec; `mean-frame` is what is known without any memory of time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from ...core.cache.encode import LowRes
from ...core.errors import UserError
from ...core.interfaces.codec import decode_whole, frames_of, from_bytes
from ...core.interfaces.compressor import Needs, State
from ...core.interfaces.retriever import PixelFrames, Retriever, Scene
from ...core.values.grid import Rate, ceil_div
from ...core.values.history import History
from ...core.values.shapes import Bytes, Counts, Frames, Pixels
from .specs import MeanFrame, Thumbnail, Upsample


class UpsampleRetriever(Retriever[Upsample]):
    """Decodes the LR latents and enlarges them: all that the LR branch holds (design §6)."""

    learned = False

    @classmethod
    def needs(cls, spec: Upsample) -> Needs:
        """Return the LR latents of the rate."""
        return Needs(rates=frozenset({spec.rate}))

    def numbers(self, scene: Scene) -> int:
        """Return the numbers of the LR latents."""
        return scene.history.lr[self.spec.rate][0].numel()

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> PixelFrames:
        """Return the frames of Ω, from the LR latents of the history.

        Raises:
            UserError: the history has no LR latents of the rate.
            ValueError: Ω differs over the batch.
        """
        rate, stride = self.spec.rate, scene.codec.stride
        if rate not in scene.history.lr:
            raise UserError(
                f"upsample needs LR latents at {rate}, which this history does not hold"
            )
        frames = frames_of_omega(omega, stride.time)
        video = decode_whole(scene.codec, scene.history.lr[rate])
        complete = 1 + (scene.history.length - 1) // rate.time
        size = (scene.size.height * stride.height, scene.size.width * stride.width)
        count = frames_in(complete, stride.time)
        pixels = from_lr_video(video, frames, count, rate, size)
        return PixelFrames(pixels=pixels.clamp(-1, 1))


class ThumbnailRetriever(Retriever[Thumbnail]):
    """Shrinks the raw video by the rate and enlarges it again (design §6)."""

    learned = False
    guide = True

    @classmethod
    def needs(cls, spec: Thumbnail) -> Needs:
        """Return pixels."""
        return Needs(pixels=True)

    def numbers(self, scene: Scene) -> int:
        """Return the colours of the LR video."""
        colours, frames, rows, columns = pixels_of(scene.history, "thumbnail").shape[1:]
        rate, stride = self.spec.rate, scene.codec.stride
        down = ceil_div(rows, rate.height * stride.height) * stride.height
        across = ceil_div(columns, rate.width * stride.width) * stride.width
        return colours * (1 + (frames - 1) // rate.time) * down * across

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> PixelFrames:
        """Return the frames of Ω, from the pixels of the history.

        Raises:
            UserError: the history has no pixels.
            ValueError: Ω differs over the batch.
        """
        rate, stride = self.spec.rate, scene.codec.stride
        frames = frames_of_omega(omega, stride.time)
        pixels = pixels_of(scene.history, "thumbnail")
        video = _shrunk(pixels, LowRes(rate, stride))
        complete = 1 + (frames_in(scene.history.length, stride.time) - 1) // rate.time
        rows, columns = pixels.shape[-2:]
        return PixelFrames(pixels=from_lr_video(video, frames, complete, rate, (rows, columns)))


def _shrunk(pixels: Bytes, lowres: LowRes) -> Tensor:
    """Return the whole LR video, shrunk a few frames at a time so that floats stay few."""
    state: State | None = None
    parts = []
    for chunk in pixels.split(32, dim=2):
        part, state = lowres.push(from_bytes(chunk), state)
        parts.append(part)
    return torch.cat(parts, dim=2)


class MeanFrameRetriever(Retriever[MeanFrame]):
    """Shows the mean of all frames of the window, whatever is asked (design §6)."""

    learned = False

    @classmethod
    def needs(cls, spec: MeanFrame) -> Needs:
        """Return pixels."""
        return Needs(pixels=True)

    def numbers(self, scene: Scene) -> int:
        """Return the colours of one frame."""
        return pixels_of(scene.history, "mean-frame")[0, :, 0].numel()

    @torch.no_grad()
    def __call__(self, scene: Scene, omega: Frames, generator: torch.Generator) -> PixelFrames:
        """Return the frames of Ω, all alike, from the pixels of the history.

        Raises:
            UserError: the history has no pixels.
            ValueError: Ω differs over the batch.
        """
        stride = scene.codec.stride.time
        count = len(frames_of_omega(omega, stride))
        pixels = pixels_of(scene.history, "mean-frame")
        real = frames_in(scene.history.length, stride).tolist()
        means = [_mean(video[:, :n]) for video, n in zip(pixels, real, strict=True)]
        return PixelFrames(pixels=repeat(torch.stack(means), "b c p q -> b c f p q", f=count))


def _mean(video: Tensor) -> Tensor:
    """Return the mean of `[3, F, P, Q]` over time, frame by frame so that no float copy is made."""
    total = torch.zeros_like(video[:, 0], dtype=torch.float32)
    for frame in video.unbind(dim=1):
        total += from_bytes(frame)
    return total / video.shape[1]


def pixels_of(history: History, name: str) -> Bytes:
    """Return the pixels of a history.

    Raises:
        UserError: it has none.
    """
    if history.pixels is None:
        raise UserError(f"{name} needs the pixels of the video, which this history does not hold")
    return history.pixels


def frames_of_omega(omega: Frames, stride: int) -> list[int]:
    """Return the video frames of Ω in order, counted inside the window.

    Raises:
        ValueError: Ω differs over the batch, so that the samples have different frames.
    """
    if bool((omega != omega[:1]).any()):
        raise ValueError("floors give pixels: Ω must be alike over the batch")
    return [frame for latent in omega[0].tolist() for frame in frames_of(latent, stride)]


def frames_in(length: Counts, stride: int) -> Counts:
    """Return how many video frames the real latents of each sample stand for."""
    return stride * (length - 1) + 1


def from_lr_video(
    video: Pixels, frames: list[int], count: Counts, rate: Rate, size: tuple[int, int]
) -> Pixels:
    """Return frames `[B, 3, F, P, Q]` out of an LR video, upsampled and cropped.

    Video frame k takes the LR frame that covers it, ⌈k / r⌉; behind the last complete LR frame of
    a sample it takes that one. Bilinear in space; what replicate padding added is cropped.

    Args:
        video: the LR video `[B, 3, F', P', Q']`.
        frames: which video frames, F of them, counted inside the window.
        count: complete LR frames of each sample, `[B]`.
        rate: how much smaller the LR video is.
        size: pixel rows and columns of the result.
    """
    covering = torch.tensor([ceil_div(frame, rate.time) for frame in frames])
    index = torch.minimum(covering, count.cpu()[:, None] - 1)
    small = torch.stack([x[:, i] for x, i in zip(video, index.to(video.device), strict=True)])
    large = upsample(small, rate)
    return large[..., : size[0], : size[1]]


def upsample(small: Pixels, rate: Rate) -> Tensor:
    """Return frames enlarged by the rate's height and width, bilinear."""
    images = rearrange(small, "b c f p q -> (b f) c p q")
    factors = (float(rate.height), float(rate.width))
    large = F.interpolate(images, scale_factor=factors, mode="bilinear", align_corners=False)
    return rearrange(large, "(b f) c p q -> b c f p q", b=len(small))
