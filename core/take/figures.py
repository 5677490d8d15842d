"""What is measured of a video's frames, one by one: colour, contrast, sharpness, motion, cuts.

Only two frames are held at once; what stays of a frame is a handful of numbers.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from attrs import define, field, frozen
from PIL import Image

from ..video.cut_network import CutNetwork, has_cut_network
from ..video.decode import Pixels

Figures = np.ndarray[Any, Any]

NETWORK, HISTOGRAM = "P(cut) of TransNetV2", "histogram distance"
# BT.709: R, G, B of 255 to Y, U and V of 255, as PIL takes it; U and V lie around 128.
TO_YUV = (
    0.2126, 0.7152, 0.0722, 0.0,
    -0.2126 / 1.8556, -0.7152 / 1.8556, 0.9278 / 1.8556, 128.0,
    0.7874 / 1.5748, -0.7152 / 1.5748, -0.0722 / 1.5748, 128.0,
)  # fmt: skip
LEVELS = np.arange(256)
COARSE = 2  # of so many rows and columns one is read, where a mean over the frame is the same
WIDEST = 320  # pixels of a picture that is kept
MOST_PICTURES = 200  # pairs


class CutMeasure(Protocol):
    """Says how much each frame looks like a cut."""

    def add(self, frame: Pixels) -> None:
        """Read the next frame."""

    def finish(self) -> Figures:
        """Return a value in [0, 1] for each frame."""


@frozen(eq=False, kw_only=True)
class FrameFigures:
    """What was measured of the F frames of a video.

    Attributes:
        colour: means of Y, U and V, `[F, 3]` of 255.
        contrast: standard deviation of Y, `[F]` of 255.
        saturation: mean distance of U and V from grey, `[F]` of 255.
        sharpness: mean absolute Laplacian of Y, `[F]` of 255.
        difference: mean absolute difference of Y from the frame before, `[F]`; the first is NaN.
        cuts: how much each frame looks like a cut, `[F]` in [0, 1].
        cut_measure: `NETWORK` or `HISTOGRAM`, what `cuts` are.
        pictures: JPEGs of the last frame before a join and the first after, by the latter's index.
    """

    colour: Figures
    contrast: Figures
    saturation: Figures
    sharpness: Figures
    difference: Figures
    cuts: Figures
    cut_measure: str
    pictures: Mapping[int, tuple[bytes, bytes]]

    @property
    def frames(self) -> int:
        """How many frames there were."""
        return len(self.difference)


def measure_frames(
    frames: Iterable[Pixels],
    joins: Collection[int] = (),
    *,
    network: bool | None = None,
) -> FrameFigures:
    """Measure the frames of a video.

    Args:
        frames: uint8 `[H, W, 3]`, read once and not held.
        joins: indices of frames that begin a segment, of which pictures are kept (200 at most).
        network: whether cuts are judged by TransNetV2; None: where it is installed.

    Raises:
        ValueError: a frame is not uint8 `[H, W, 3]` of the first one's size.
        ImportError: the network was asked for and is not installed.
    """
    with_network = has_cut_network() if network is None else network
    cuts: CutMeasure = CutNetwork() if with_network else HistogramDistance()
    rows: list[tuple[float, ...]] = []
    pictures: dict[int, tuple[bytes, bytes]] = {}
    kept = set(sorted(joins)[:MOST_PICTURES])
    last: Pixels | None = None
    luma: Figures | None = None
    for index, frame in enumerate(frames):
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"frame {index} is {frame.dtype} {frame.shape}, not uint8 [H, W, 3]")
        if last is not None and frame.shape != last.shape:
            raise ValueError(f"frame {index} is {frame.shape}, the first ones are {last.shape}")
        figures, now = _frame_figures(frame)
        change = float("nan") if luma is None else _mean_size(now - luma)
        rows.append((*figures, change))
        cuts.add(frame)
        if index in kept and last is not None:
            pictures[index] = (_jpeg(last), _jpeg(frame))
        last, luma = frame, now
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 7)
    return FrameFigures(
        colour=table[:, :3],
        contrast=table[:, 3],
        saturation=table[:, 4],
        sharpness=table[:, 5],
        difference=table[:, 6],
        cuts=cuts.finish(),
        cut_measure=NETWORK if with_network else HISTOGRAM,
        pictures=pictures,
    )


def _frame_figures(frame: Pixels) -> tuple[tuple[float, ...], Figures]:
    """Return mean Y, U, V, contrast, saturation and sharpness of a frame, and its Y `[H, W]`."""
    picture = Image.fromarray(frame).convert("RGB", TO_YUV)
    counts = np.array(picture.histogram(), dtype=np.float64).reshape(3, 256)
    means = counts @ LEVELS / counts[0].sum()
    contrast = float(np.sqrt(counts[0] @ (LEVELS - means[0]) ** 2 / counts[0].sum()))
    yuv = np.asarray(picture)
    u, v = (yuv[::COARSE, ::COARSE, i].astype(np.float32) - 128 for i in (1, 2))
    saturation = float(np.hypot(u, v).mean(dtype=np.float64))
    luma = yuv[..., 0].astype(np.int16)
    colour = (float(means[0]), float(means[1]) - 128, float(means[2]) - 128)
    return (*colour, contrast, saturation, _sharpness(luma)), luma


def _sharpness(luma: Figures) -> float:
    """Return the mean absolute Laplacian away from the edges; 0 for a frame without an inside."""
    if min(luma.shape) < 3:
        return 0.0
    around = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    return _mean_size(4 * luma[1:-1, 1:-1] - around)


def _mean_size(values: Figures) -> float:
    """Return the mean absolute value of int16 values."""
    return float(np.abs(values).sum(dtype=np.int64)) / values.size


@define
class HistogramDistance:
    """How much the colours of a frame are others than those of the frame before.

    The distance is half the sum of absolute differences of histograms of 8 × 8 × 8 colours: 0 for
    the same colours, wherever they are, 1 for none in common.
    """

    last: Figures | None = None
    found: list[float] = field(factory=list)

    def add(self, frame: Pixels) -> None:
        """Read the next frame, uint8 [H, W, 3]."""
        step = (frame[::COARSE, ::COARSE] >> 5).astype(np.int16)
        bins = (step[..., 0] * 64 + step[..., 1] * 8 + step[..., 2]).ravel()
        shares = np.bincount(bins, minlength=512) / bins.size
        far = 0.0 if self.last is None else float(np.abs(shares - self.last).sum()) / 2
        self.found.append(far)
        self.last = shares

    def finish(self) -> Figures:
        """Return the distances of all frames, float64 [F]; that of the first is 0."""
        return np.array(self.found)


def _jpeg(frame: Pixels) -> bytes:
    picture = Image.fromarray(frame)
    if picture.width > WIDEST:
        height = max(1, round(picture.height * WIDEST / picture.width))
        picture = picture.resize((WIDEST, height))
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()
