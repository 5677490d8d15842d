"""What floors share: which video frames Ω stands for, and frames out of an LR video."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.codec import frames_of
from ...core.errors import UserError
from ...core.grid import Rate, ceil_div
from ...core.history import History
from ...core.shapes import Bytes, Counts, Frames, Pixels


def frames_asked(omega: Frames, stride: int) -> list[int]:
    """Give the video frames of Ω in order, counted inside the window.

    Raises:
        ValueError: Ω differs over the batch, so that the samples have different frames.
    """
    if bool((omega != omega[:1]).any()):
        raise ValueError("floors give pixels: Ω must be alike over the batch")
    return [frame for latent in omega[0].tolist() for frame in frames_of(latent, stride)]


def from_lr_video(
    video: Pixels, asked: list[int], count: Counts, rate: Rate, size: tuple[int, int]
) -> Pixels:
    """Give frames `[B, 3, F, P, Q]` out of an LR video, upsampled and cropped.

    Video frame k takes the LR frame that covers it, ⌈k / r⌉; behind the last complete LR frame of
    a sample it takes that one. Bilinear in space; what replicate padding added is cropped.

    Args:
        video: the LR video `[B, 3, F', P', Q']`.
        asked: the frames wanted, F of them.
        count: complete LR frames of each sample, `[B]`.
        rate: how much smaller the LR video is.
        size: pixel rows and columns of the result.
    """
    covering = torch.tensor([ceil_div(frame, rate.time) for frame in asked])
    index = torch.minimum(covering, count.cpu()[:, None] - 1)
    small = torch.stack([x[:, i] for x, i in zip(video, index.to(video.device), strict=True)])
    large = upsample(small, rate)
    return large[..., : size[0], : size[1]]


def upsample(small: Pixels, rate: Rate) -> Tensor:
    """Give frames enlarged by the rate's height and width, bilinear."""
    flat = small.transpose(1, 2).flatten(0, 1)
    factors = (float(rate.height), float(rate.width))
    large = F.interpolate(flat, scale_factor=factors, mode="bilinear", align_corners=False)
    batch, _, count = small.shape[:3]
    return large.reshape(batch, count, *large.shape[1:]).transpose(1, 2)


def pixels_of(history: History, name: str) -> Bytes:
    """Give the pixels of a history.

    Raises:
        UserError: it has none.
    """
    if history.pixels is None:
        raise UserError(f"{name} needs the pixels of the video, which this history does not hold")
    return history.pixels


def frames_in(length: Counts, stride: int) -> Counts:
    """Give how many video frames the real latents of each sample stand for."""
    return stride * (length - 1) + 1
