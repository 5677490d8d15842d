"""Codec: pixels to latents and back, in chunks (design §3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .compressor import State
from .grid import Size3
from .shapes import Latents, Pixels
from .spec import CodecSpec

S = TypeVar("S", bound=CodecSpec)


class Codec(nn.Module, ABC, Generic[S]):
    """Turns video into latents and back, a chunk at a time; built as `cls(spec)`.

    Pixels are RGB in [−1, 1]. The first chunk holds 1 + 4k frames (for a time stride of 4), later
    ones 4k; likewise the first decoded latent gives one frame, every other four. State is a dict
    of tensors, None before the first chunk; the functions never change a state they were given.
    """

    def __init__(self, spec: S) -> None:
        super().__init__()
        self.spec = spec

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels C of a latent cell."""

    @property
    @abstractmethod
    def stride(self) -> Size3:
        """Pixels to a latent cell."""

    @property
    @abstractmethod
    def causal(self) -> bool:
        """Whether a latent depends on no later frame, so that streaming equals one pass."""

    @property
    @abstractmethod
    def margin(self) -> int:
        """Latents before a slice that a fresh decode of it must see to give the same pixels."""

    @property
    def channel_reach(self) -> Tensor:
        """How far a unit of each channel reaches into pixels, `[C]`, mean 1; default: alike."""
        return torch.ones(self.channels)

    @property
    @abstractmethod
    def identity(self) -> str:
        """Name and hash of the weights: stores made with another codec are refused."""

    @abstractmethod
    def encode(self, chunk: Pixels, state: State | None = None) -> tuple[Latents, State]:
        """Give the normalised latents of the next frames, and the state after them."""

    @abstractmethod
    def decode(self, chunk: Latents, state: State | None = None) -> tuple[Pixels, State]:
        """Give the pixels of the next latents (not clamped), and the state after them."""


def encode_video(codec: Codec[CodecSpec], chunks: Iterator[Pixels]) -> Latents:
    """Give the latents of a video that comes in chunks, with one chunk of pixels in memory."""
    state: State | None = None
    latents = []
    for chunk in chunks:
        out, state = codec.encode(chunk, state)
        latents.append(out)
    return torch.cat(latents, dim=2)


def decode_among(codec: Codec[CodecSpec], latents: Latents, index: int, latent: Latents) -> Pixels:
    """Give the frames of one retrieved latent, decoded among its true predecessors.

    A latent decoded alone gives one frame and other pixels (design §7.9), so the codec first sees
    the true latents before it.

    Args:
        codec: of these latents.
        latents: the true latents of the window `[B, C, T, H, W]`.
        index: where the latent stands in the window.
        latent: `[B, C, 1, H, W]`, put in its place.

    Returns:
        `[B, 3, f, P, Q]` in [−1, 1]; f is 1 at index 0, else the time stride.
    """
    first = max(0, index - max(codec.margin, 1))
    together = torch.cat([latents[:, :, first:index], latent], dim=2)
    pixels, _ = codec.decode(together)
    frames = codec.stride.time if index else 1
    return pixels[:, :, -frames:].clamp(-1, 1)


def frames_of(latent: int, stride: int) -> range:
    """Give the video frames that a latent frame stands for: 0 → 0; i → 4(i − 1) + 1 … 4i."""
    return range(stride * (latent - 1) + 1, stride * latent + 1) if latent else range(1)


def frame_to_latent(frame: int, stride: int) -> int:
    """Give the latent frame that stands for a video frame."""
    return -(-frame // stride)


def to_unit(pixels: Tensor) -> Tensor:
    """Give pixels of [−1, 1] as [0, 1], clamped."""
    return (pixels.clamp(-1, 1) + 1) / 2


def from_bytes(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Give uint8 pixels as floats in [−1, 1]."""
    return frames.to(dtype) / 127.5 - 1


def to_bytes(pixels: Tensor) -> Tensor:
    """Give pixels of [−1, 1] as uint8, rounded and clamped."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
