"""The picture of `longtake show --picture`: what the masker does to a clip, along time.

`mask_clip` gives it as data, small latents in colours; `draw_masker` draws that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from attrs import frozen
from einops import rearrange, reduce
from torch import Tensor

from ..cache.encode import LowRes
from ..config import to_json
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.codec import from_bytes
from ..interfaces.compressor import pad_to
from ..interfaces.masker import Masker
from ..interfaces.spec import MaskerSpec
from ..model import compressor_needs
from ..registry import build
from ..tools.files import check_out_file, whole_file
from ..values.draws import Draws
from ..values.grid import Geometry, Rate, Size3
from ..values.history import History, Query
from ..values.text import Text

LATENTS = 17  # 1 + a multiple of all time rates
CELLS = (18, 32)  # latent rows and columns
FORMATS = (".png", ".jpg", ".svg", ".pdf")
ASKED, LEVEL, QUIET = "#d95f02", "#5b7aa6", "#666666"
WIDTH = 13.0  # inches
WIDE = 0.94  # of a latent's room that its picture takes


def save_masker_picture(
    experiment: Experiment, path: Path, *, video: Path | None = None, seed: int = 0
) -> Path:
    """Write what the experiment's masker does to a clip, whole or not at all; return the path.

    A strip of HR latents before and after, Ω framed, and under them the level of each; for every
    LR rate of the experiment the same of its LR latents, each under the HR latents it covers.

    Args:
        experiment: see `mask_clip`.
        path: ends in .png, .jpg, .svg or .pdf; its folder is made.
        video: the clip; default: the built-in one.
        seed: of Ω and all that is random.

    Raises:
        UserError: another ending, a video that cannot be read, or a file that cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--picture {path}: a picture ends in {', '.join(FORMATS)}")
    check_out_file(path, "--picture")
    figure = draw_masker(mask_clip(experiment, video=video, seed=seed), title_of(experiment))
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix.lower().lstrip("."), dpi=120)
    return path


@frozen(eq=False, kw_only=True)
class MaskedClip:
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


def mask_clip(experiment: Experiment, *, video: Path | None = None, seed: int = 0) -> MaskedClip:
    """Return what the experiment's masker does to a clip.

    Latents stand for what the codec would give: means of the pixels over its stride, each colour of
    mean 0 and variance 1, so that nothing must be loaded and the picture has colours. The history
    is masked for certain (`Masker.masked`).

    Args:
        experiment: its masker, LR rates and the codec's stride count.
        video: the clip; default: the built-in one.
        seed: of Ω and all that is random.

    Raises:
        UserError: the video cannot be read, or is shorter than a latent.
    """
    geometry = experiment.backbone.geometry
    pixels = _read_pixels(geometry, video)
    stride = geometry.vae_stride
    latents = _mean_latents(pixels, stride)
    mean = latents.mean(dim=(0, 2, 3, 4), keepdim=True)
    std = latents.std(dim=(0, 2, 3, 4), keepdim=True).clamp_min(1e-3)
    lr = {
        rate: _mean_latents(LowRes(rate, stride).push(pixels)[0], stride)
        for rate in sorted(compressor_needs(experiment).rates)
    }
    history = History(
        latents=(latents - mean) / std, lr={rate: (x - mean) / std for rate, x in lr.items()}
    )
    query = _masked_query(experiment, history, seed)

    def colours(x: Tensor) -> Tensor:
        return rearrange(((x * std + mean + 1) / 2).clamp(0, 1), "1 c t h w -> t c h w")

    return MaskedClip(
        query=query,
        clean=colours(history.latents),
        masked=colours(query.history.latents),
        lr={rate: colours(x) for rate, x in query.history.lr.items()},
        seconds=[(1 + stride.time * i) / geometry.fps for i in range(history.size.time)],
    )


def _masked_query(experiment: Experiment, history: History, seed: int) -> Query:
    masker: Masker[MaskerSpec] = build(experiment.masker).fit_to(experiment.backbone.geometry)
    no_text = Text(embeddings=torch.zeros(1, 1, 1), mask=torch.ones(1, 1, dtype=torch.bool))
    return masker.query(history, no_text, Draws.of(seed, 0, [0], "picture"), certain=True)


def _read_pixels(geometry: Geometry, video: Path | None) -> Tensor:
    """Return the clip `[1, 3, F, P, Q]` in [−1, 1]: whole latents, LATENTS of them at most."""
    stride = geometry.vae_stride
    size = (CELLS[0] * stride.height, CELLS[1] * stride.width)
    count = 1 + stride.time * (LATENTS - 1)
    frames = list(islice(_frames(geometry.fps, size, count, video), count))
    if not frames:
        raise UserError(f"{video} has no frame to show")
    whole = 1 + stride.time * (geometry.latents(len(frames)) - 1)
    stacked = torch.from_numpy(np.stack(frames[:whole]))
    return from_bytes(rearrange(stacked, "f p q c -> 1 c f p q"))


def _frames(fps: float, size: tuple[int, int], count: int, video: Path | None) -> Iterator[Any]:
    if video is None:
        from ..video.builtin_clip import builtin_clip

        yield from builtin_clip(fps=fps, height=size[0], width=size[1])
        return
    from ..video.read import iter_frames

    for chunk in iter_frames(video, fps=fps, size=size, count=count):
        yield from chunk


def _mean_latents(pixels: Tensor, stride: Size3) -> Tensor:
    """Return means over the codec's stride `[1, 3, T, H, W]`; frame 0 alone, whole latents only."""
    padded = pad_to(pixels, stride.height, stride.width)
    cells = (padded.shape[-2] // stride.height, padded.shape[-1] // stride.width)
    small = F.adaptive_avg_pool2d(padded[0], cells)[None]
    first, rest = small[:, :, :1], small[:, :, 1:]
    rest = rest[:, :, : rest.shape[2] // stride.time * stride.time]
    means = reduce(rest, "1 c (t f) h w -> 1 c t h w", "mean", f=stride.time)
    return torch.cat([first, means], dim=2)


def title_of(experiment: Experiment) -> str:
    """Return the masker and its fields in one line."""
    spec = to_json(experiment.masker)
    values = {name: value for name, value in spec.items() if name != "type"}
    fields = [
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in values.items()
    ]
    return f"{experiment.name}: masker {spec['type']} ({', '.join(fields)})"


def draw_masker(clip: MaskedClip, title: str) -> Any:
    """Return the matplotlib figure of a masked clip."""
    from matplotlib.figure import Figure

    rates, count = list(clip.lr), len(clip.seconds)
    strip = WIDTH / count * CELLS[0] / CELLS[1]
    heights = [strip, strip, 0.5, *[x for _ in rates for x in (strip, 0.5)]]
    figure = Figure(figsize=(WIDTH + 1.4, sum(heights) + 0.12 * len(heights) + 0.9))
    figure.set_layout_engine("constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", wrap=True)
    rows = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    spans = [(i - 0.5, i + 0.5) for i in range(count)]
    asked = {int(i) for i in clip.query.omega[0]}
    _draw_frames(rows[0], clip.clean, spans, "HR latents", asked)
    _draw_frames(rows[1], clip.masked, spans, "masked,\nΩ framed", asked)
    _draw_levels(rows[2], clip.query.levels[0], spans)
    _draw_lr(rows[3:], clip.lr, clip.query.lr_levels)
    rows[-1].set_xlim(-0.5, count - 0.5)
    rows[-1].set_xticks(range(count), [f"{i}\n{s:.1f} s" for i, s in enumerate(clip.seconds)])
    rows[-1].set_xlabel("latent frame, and the second at which it ends", color=QUIET)
    return figure


def _draw_lr(rows: list[Any], lr: Mapping[Rate, Tensor], levels: Mapping[Rate, Tensor]) -> None:
    for index, (rate, latents) in enumerate(lr.items()):
        spans = lr_spans(rate, latents.shape[0])
        _draw_frames(rows[2 * index], latents, spans, f"LR {rate}", set())
        _draw_levels(rows[2 * index + 1], levels[rate][0], spans)


def lr_spans(rate: Rate, latents: int) -> list[tuple[float, float]]:
    """Return where each LR latent begins and ends on the axis of HR latents that it covers."""
    first = [0, *[rate.time * (j - 1) + 1 for j in range(1, latents)]]
    return [(start - 0.5, rate.time * j + 0.5) for j, start in enumerate(first)]


def _draw_frames(
    axes: Any, frames: Tensor, spans: list[tuple[float, float]], name: str, asked: set[int]
) -> None:
    """Draw frames `[T, 3, H, W]`, each in the middle of its span, in the clip's shape."""
    for index, (frame, (low, high)) in enumerate(zip(frames, spans, strict=True)):
        middle, half = (low + high) / 2, WIDE / 2
        box = (middle - half, middle + half, 0.0, 1.0)
        picture = rearrange(frame, "c h w -> h w c").numpy()
        axes.imshow(picture, extent=box, aspect="auto", interpolation="nearest")
        colour, width = (ASKED, 3.0) if index in asked else ("#bbbbbb", 0.6)
        axes.plot([box[0], box[1], box[1], box[0], box[0]], [0, 0, 1, 1, 0], color=colour, lw=width)
        if high - low > 1:
            axes.plot([low + 0.06, high - 0.06], [-0.06, -0.06], color=QUIET, lw=1.2)
    axes.set_ylim(-0.08, 1.02)
    axes.set_box_aspect(1.1 * WIDE * CELLS[0] / CELLS[1] / (spans[-1][1] - spans[0][0]))
    axes.set_yticks([])
    axes.set_frame_on(False)
    _label(axes, name)


def _draw_levels(axes: Any, levels: Tensor, spans: list[tuple[float, float]]) -> None:
    """Draw the level of each latent as a bar over its span; a dot where it is clean."""
    for level, (low, high) in zip(levels.tolist(), spans, strict=True):
        axes.bar((low + high) / 2, level, width=high - low - 0.12, color=LEVEL)
        if level == 0:
            axes.plot((low + high) / 2, 0, "o", color=ASKED, ms=4, clip_on=False)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 1])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=7, colors=QUIET)
    _label(axes, "level")


def _label(axes: Any, name: str) -> None:
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
