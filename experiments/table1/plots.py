"""The pictures of a table: quality against context length, by age, and one frame from each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.measure.result import Interval
from ...core.tools.files import whole_file
from .page import TableLine, mean_over_clips
from .work import ORIGINAL

SIZE = (8.0, 4.5)
PROPOSED = "proposed"
ASIDE = 1.035  # of a length, from one of its points to the next


def by_length(path: Path, lines: Sequence[TableLine], floors: Mapping[str, Interval]) -> None:
    """Draw the PSNR of every memory against its tokens, with the floors as horizontal lines."""

    def draw(axes: Any) -> None:
        for place, line in enumerate(lines):
            # those of one length stand side by side
            alike = sum(other.tokens == line.tokens for other in lines[:place])
            _point(axes, line, line.tokens * ASIDE**alike)
        for (name, floor), style in zip(floors.items(), ("-", "--", ":"), strict=False):
            axes.axhline(floor.mean, color="0.5", linestyle=style, linewidth=1, label=name)
        lengths = _readable(sorted({line.tokens for line in lines}))
        axes.set_xscale("log")
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("tokens of context (logarithmic)")
        axes.set_ylabel("PSNR, dB")

    _figure(path, draw)


def _readable(lengths: Sequence[int]) -> list[int]:
    """Return the lengths whose labels do not run into the one before."""
    labelled: list[int] = []
    for length in lengths:
        if not labelled or length > 1.1 * labelled[-1]:
            labelled.append(length)
    return labelled


def _point(axes: Any, line: TableLine, across: float) -> None:
    psnr = mean_over_clips(line.clips["psnr"])
    if psnr is None:
        return
    low = psnr.mean - (psnr.mean if psnr.low is None else psnr.low)
    high = (psnr.mean if psnr.high is None else psnr.high) - psnr.mean
    marker = "o" if line.row.name.startswith(PROPOSED) else "s"
    axes.errorbar(
        [across], [psnr.mean], yerr=[[low], [high]], fmt=marker, capsize=2, label=line.row.title
    )


def by_age(path: Path, lines: Sequence[TableLine]) -> None:
    """Draw the PSNR of every memory against the age of the frames."""

    def draw(axes: Any) -> None:
        for line in lines:
            middles = [(start + end) / 2 for start, end, _ in line.ages]
            style = "-" if line.row.name.startswith(PROPOSED) else "--"
            axes.plot(middles, [x for *_, x in line.ages], style, marker=".", label=line.row.title)
        axes.set_xlabel("seconds before the end of the history")
        axes.set_ylabel("PSNR, dB")

    _figure(path, draw)


def strips(path: Path, folder: Path, lines: Sequence[TableLine]) -> None:
    """Draw the same frames from each memory, one row a memory below the originals."""
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    first = [("original", folder / ORIGINAL)]
    ours = [(x.row.title, folder / f"{x.row.name}-{x.seeds[0]}.png") for x in lines]
    shown = [(title, imread(str(file))) for title, file in (*first, *ours) if file.exists()]
    if not shown:
        return
    height, width = shown[0][1].shape[:2]
    figure = Figure(figsize=(8.0, 8.0 * height / width * len(shown) * 1.25), layout="constrained")
    for place, (title, image) in enumerate(shown, start=1):
        axes = figure.add_subplot(len(shown), 1, place)
        axes.imshow(image)
        axes.set_title(title, fontsize=8, loc="left")
        axes.set_axis_off()
    _save(figure, path)


def _figure(path: Path, draw: Callable[[Any], None]) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=colormaps["tab20"](range(20)))
    draw(axes)
    axes.grid(axis="y", linewidth=0.5, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=140)
