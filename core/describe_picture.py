"""The picture of `longtake show --picture`: what the masker does to a clip, along time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from .describe_masked import CELLS, Look, look
from .edge import to_json
from .errors import UserError
from .experiment import Experiment
from .files import whole_file
from .grid import Rate

FORMATS = (".png", ".jpg", ".svg", ".pdf")
ASKED, LEVEL, QUIET = "#d95f02", "#5b7aa6", "#666666"
WIDTH = 13.0  # inches
WIDE = 0.94  # of a latent's room that its picture takes


def save_masker_picture(
    experiment: Experiment, path: Path, *, video: Path | None = None, seed: int = 0
) -> Path:
    """Write what the experiment's masker does to a clip, whole or not at all, and give its path.

    A strip of HR latents before and after, Ω framed, and under them the level of each; for every
    LR rate of the experiment the same of its LR latents, each under the HR latents it covers.

    Args:
        experiment: see `core.describe_masked.look`.
        path: ends in .png, .jpg, .svg or .pdf; its folder is made.
        video: to look at; default: the built-in clip.
        seed: of Ω and all that is random.

    Raises:
        UserError: another ending, a video that cannot be read, or a file that cannot be written.
    """
    check_picture(path)
    figure = draw_masker(look(experiment, video=video, seed=seed), title_of(experiment))
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix.lower().lstrip("."), dpi=120)
    return path


def check_picture(path: Path) -> None:
    """Refuse a path that no picture can be written to: UserError."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--picture {path}: a picture ends in {', '.join(FORMATS)}")


def title_of(experiment: Experiment) -> str:
    """Give the masker and its fields in one line."""
    spec = to_json(experiment.masker)
    fields = [f"{name}={_told(value)}" for name, value in spec.items() if name != "type"]
    return f"{experiment.name}: masker {spec['type']} ({', '.join(fields)})"


def _told(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw_masker(found: Look, title: str) -> Any:
    """Give the matplotlib figure."""
    from matplotlib.figure import Figure

    rates, count = list(found.lr), len(found.seconds)
    strip = WIDTH / count * CELLS[0] / CELLS[1]
    heights = [strip, strip, 0.5, *[x for _ in rates for x in (strip, 0.5)]]
    figure = Figure(figsize=(WIDTH + 1.4, sum(heights) + 0.12 * len(heights) + 0.9))
    figure.set_layout_engine("constrained")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left", wrap=True)
    rows = list(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    spans = [(i - 0.5, i + 0.5) for i in range(count)]
    asked = {int(i) for i in found.query.omega[0]}
    _strip(rows[0], found.clean, spans, "HR latents", asked)
    _strip(rows[1], found.masked, spans, "masked,\nΩ framed", asked)
    _levels(rows[2], found.query.levels[0], spans, "level")
    _draw_lr(rows[3:], found.lr, found.query.lr_levels, count)
    rows[-1].set_xlim(-0.5, count - 0.5)
    rows[-1].set_xticks(range(count), [f"{i}\n{s:.1f} s" for i, s in enumerate(found.seconds)])
    rows[-1].set_xlabel("latent frame, and the second at which it ends", color=QUIET)
    return figure


def _draw_lr(
    rows: list[Any], lr: Mapping[Rate, Tensor], levels: Mapping[Rate, Tensor], count: int
) -> None:
    for index, (rate, latents) in enumerate(lr.items()):
        spans = lr_spans(rate, latents.shape[0])
        _strip(rows[2 * index], latents, spans, f"LR {rate}", set())
        _levels(rows[2 * index + 1], levels[rate][0], spans, "level")


def lr_spans(rate: Rate, latents: int) -> list[tuple[float, float]]:
    """Give where each LR latent begins and ends on the axis of HR latents that it covers."""
    first = [0, *[rate.time * (j - 1) + 1 for j in range(1, latents)]]
    return [(a - 0.5, rate.time * j + 0.5) for j, a in enumerate(first)]


def _strip(
    axes: Any, frames: Tensor, spans: list[tuple[float, float]], name: str, asked: set[int]
) -> None:
    """Draw frames `[T, 3, H, W]`, each in the middle of its span, in the clip's shape."""
    for index, (frame, (low, high)) in enumerate(zip(frames, spans, strict=True)):
        middle, half = (low + high) / 2, WIDE / 2
        box = (middle - half, middle + half, 0.0, 1.0)
        axes.imshow(
            frame.movedim(0, -1).numpy(), extent=box, aspect="auto", interpolation="nearest"
        )
        colour, width = (ASKED, 3.0) if index in asked else ("#bbbbbb", 0.6)
        axes.plot([box[0], box[1], box[1], box[0], box[0]], [0, 0, 1, 1, 0], color=colour, lw=width)
        if high - low > 1:
            axes.plot([low + 0.06, high - 0.06], [-0.06, -0.06], color=QUIET, lw=1.2)
    axes.set_ylim(-0.08, 1.02)
    axes.set_box_aspect(1.1 * WIDE * CELLS[0] / CELLS[1] / (spans[-1][1] - spans[0][0]))
    axes.set_yticks([])
    axes.set_frame_on(False)
    _label(axes, name)


def _levels(axes: Any, levels: Tensor, spans: list[tuple[float, float]], name: str) -> None:
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
    _label(axes, name)


def _label(axes: Any, name: str) -> None:
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
