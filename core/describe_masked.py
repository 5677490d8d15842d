"""What a masker does to a clip, as data for a picture: small latents that can be looked at."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import frozen
from torch import Tensor

from .codec import from_bytes
from .data.lowres import LowRes
from .draws import Draws
from .errors import UserError
from .experiment import Experiment
from .fit import pad_to
from .grid import Geometry, Rate, Size3
from .history import History
from .masker import Masker
from .model import compressor_needs
from .query import Query
from .registry import build
from .spec import MaskerSpec
from .text import Text

LATENTS = 17  # 1 + a multiple of all time rates
CELLS = (18, 32)  # latent rows and columns


@frozen(eq=False, kw_only=True)
class Look:
    """A clip's history before and after a masker, as colours.

    Attributes:
        query: what the masker gave.
        clean: HR latents before, `[T, 3, H, W]` in [0, 1].
        masked: HR latents after.
        lr: LR latents after, by rate.
        seconds: at which each HR latent ends.
    """

    query: Query
    clean: Tensor
    masked: Tensor
    lr: dict[Rate, Tensor]
    seconds: list[float]


def look(experiment: Experiment, *, video: Path | None = None, seed: int = 0) -> Look:
    """Give what the experiment's masker does to a clip.

    Latents stand for what the codec would give: means of the pixels over its stride, each colour of
    mean 0 and variance 1, so that nothing must be loaded and the picture has colours. The history
    is masked for certain (`Masker.masked`).

    Args:
        experiment: its masker, LR rates and the codec's stride count.
        video: to look at; default: the built-in clip.
        seed: of Ω and all that is random.

    Raises:
        UserError: the video cannot be read, or is shorter than a latent.
    """
    geometry = experiment.backbone.geometry
    pixels = _pixels(geometry, video)
    stride = geometry.vae_stride
    latents = _latents(pixels, stride)
    mean = latents.mean(dim=(0, 2, 3, 4), keepdim=True)
    size = latents.std(dim=(0, 2, 3, 4), keepdim=True).clamp_min(1e-3)
    lr = {
        rate: _latents(LowRes(rate, stride).push(pixels)[0], stride)
        for rate in sorted(compressor_needs(experiment).rates)
    }
    history = History(
        latents=(latents - mean) / size, lr={r: (x - mean) / size for r, x in lr.items()}
    )
    query = _masked(experiment.masker, history, seed)

    def shown(x: Tensor) -> Tensor:
        return ((x * size + mean + 1) / 2).clamp(0, 1)[0].transpose(0, 1)

    return Look(
        query=query,
        clean=shown(history.latents),
        masked=shown(query.history.latents),
        lr={rate: shown(x) for rate, x in query.history.lr.items()},
        seconds=[(1 + stride.time * i) / geometry.fps for i in range(history.size.time)],
    )


def _masked(spec: MaskerSpec, history: History, seed: int) -> Query:
    masker: Masker[MaskerSpec] = build(spec)
    nothing = Text(embeddings=torch.zeros(1, 1, 1), mask=torch.ones(1, 1, dtype=torch.bool))
    return masker.masked(history, nothing, Draws.of(seed, 0, [0], "picture"))


def _pixels(geometry: Geometry, video: Path | None) -> Tensor:
    """Give the clip `[1, 3, F, P, Q]` in [−1, 1]: whole latents, LATENTS of them at most."""
    stride = geometry.vae_stride
    size = (CELLS[0] * stride.height, CELLS[1] * stride.width)
    count = 1 + stride.time * (LATENTS - 1)
    frames = list(islice(_frames(geometry.fps, size, count, video), count))
    if not frames:
        raise UserError(f"{video} has no frame to show")
    whole = 1 + stride.time * (geometry.latents(len(frames)) - 1)
    stacked = torch.from_numpy(np.stack(frames[:whole]))
    return from_bytes(stacked.permute(3, 0, 1, 2)[None])


def _frames(fps: float, size: tuple[int, int], count: int, video: Path | None) -> Iterator[Any]:
    if video is None:
        from .demo.clip import builtin_clip

        yield from builtin_clip(fps=fps, height=size[0], width=size[1])
        return
    from .data.video import iter_frames

    for chunk in iter_frames(video, fps=fps, size=size, count=count):
        yield from chunk


def _latents(pixels: Tensor, stride: Size3) -> Tensor:
    """Give means over the codec's stride `[1, 3, T, H, W]`; frame 0 alone, whole latents only."""
    padded = pad_to(pixels, stride.height, stride.width)
    cells = (padded.shape[-2] // stride.height, padded.shape[-1] // stride.width)
    small = torch.nn.functional.adaptive_avg_pool2d(padded[0], cells)[None]
    rest = small[:, :, 1:]
    count = rest.shape[2] // stride.time
    means = rest[:, :, : count * stride.time].unflatten(2, (count, stride.time)).mean(dim=3)
    return torch.cat([small[:, :, :1], means], dim=2)
