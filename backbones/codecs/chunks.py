"""What all codecs ask of a chunk."""

from __future__ import annotations

from torch import Tensor

from ...core.grid import Size3


def check_frames(chunk: Tensor, stride: int, *, first: bool) -> None:
    """Make sure that a chunk of pixels is whole: 1 + stride·k frames at first, then stride·k.

    Raises:
        ValueError: it holds no floats, or another number of frames.
    """
    frames = chunk.shape[2]
    if not chunk.is_floating_point():
        raise ValueError(f"pixels are floats in [−1, 1], not {chunk.dtype}")
    if (frames - first) % stride or not frames:
        rule = f"the first chunk holds 1 + {stride}k" if first else f"later chunks hold {stride}k"
        raise ValueError(f"{rule} frames, not {frames}")


def check_sides(chunk: Tensor, stride: Size3) -> None:
    """Make sure that frames are whole latent cells.

    Raises:
        ValueError: a side is no multiple of the stride.
    """
    height, width = chunk.shape[-2:]
    if height % stride.height or width % stride.width:
        raise ValueError(
            f"frames of {height}x{width} pixels are no whole latent cells: their sides must be "
            f"multiples of {stride.height} and {stride.width}"
        )


def check_latents(chunk: Tensor, channels: int) -> None:
    """Make sure that latents can be decoded.

    Raises:
        ValueError: the chunk holds none, or has other channels.
    """
    if chunk.shape[1] != channels or not chunk.shape[2]:
        raise ValueError(
            f"latents of {chunk.shape[1]} channels and {chunk.shape[2]} frames cannot be "
            f"decoded: {channels} channels and one frame or more"
        )
