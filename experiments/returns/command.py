"""What the probes share: their command line, asking clip after clip, and what they write."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs
from einops import rearrange
from torch import Tensor

from ...core.data.store import Record, Store
from ...core.tools.files import whole_file, write_json
from ...core.tools.progress import progress_bar
from ..common import command_line, commit, machine_facts


class Answered(Protocol):
    """What is known of one clip that was asked for; pictures by way to answer."""

    @property
    def shown(self) -> Mapping[str, Tensor]:
        """One frame by way to answer, uint8 `[3, P, Q]`."""


R = TypeVar("R")
A = TypeVar("A", bound=Answered)


def probe_parser(name: str, doc: str | None) -> ArgumentParser:
    """Return the command line of a probe: its models and its folder.

    Args:
        name: of its package.
        doc: of its `__main__`.
    """
    parser = command_line(name, doc)
    parser.add_argument("run", help="a run, a checkpoint, or shipped weights by name")
    parser.add_argument("--window-run", help="a run trained with `window`, to answer beside RUN")
    parser.add_argument(
        "--beside", action="append", default=[], help="a run with another memory; may be repeated"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of clips and results")
    return parser


def ask_clips(
    store: Store, clips: Iterable[Path], ask: Callable[[Record], R], title: str
) -> list[R]:
    """Return the results of the clips of this run; the store may have others', too.

    Args:
        store: of the clips.
        clips: their files.
        ask: what is done with each.
        title: of the progress bar.
    """
    names = {path.stem for path in clips}
    records = [record for record in store.records if record.name in names]
    results = []
    with progress_bar(title) as report:
        for done, record in enumerate(records, start=1):
            results.append(ask(record))
            report(done, len(records), record.name)
    return results


def write_results(path: Path, data: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Write `path`.json, with facts of the machine, and `path`.md; return what the first holds."""
    whole = {**data, "facts": machine_facts(), **commit()}
    write_json(path.with_suffix(".json"), whole)
    with whole_file(path.with_suffix(".md")) as part:
        part.write_text(text, encoding="utf-8")
    return whole


def figures_of(clip: Any) -> dict[str, Any]:
    """Return a clip's results as plain data, without its pictures."""
    return attrs.asdict(clip, filter=attrs.filters.exclude("shown"))


def draw_clips(
    path: Path, clips: Sequence[A], ways: Sequence[str], title: Callable[[A, str], str], size: int
) -> None:
    """Draw clips, a row each, as each way gave them back.

    Args:
        path: of the picture.
        clips: the clips.
        ways: the columns.
        title: of a clip's frame.
        size: of the titles.
    """
    from matplotlib.figure import Figure

    height, width = clips[0].shown[ways[0]].shape[1:]
    wide, high = 2.0 * len(ways), (2.0 * height / width + 0.35) * len(clips)
    figure = Figure(figsize=(wide, high), layout="constrained")
    grid = figure.subplots(len(clips), len(ways), squeeze=False)
    for line, clip in zip(grid, clips, strict=True):
        for axes, way in zip(line, ways, strict=True):
            axes.imshow(rearrange(clip.shown[way], "c h w -> h w c").numpy())
            axes.set_title(title(clip, way), fontsize=size, loc="left")
            axes.set_axis_off()
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=140)


def signed_interval(figure: Mapping[str, Any], digits: int = 2) -> str:
    """Return a mean with its sign, and its interval where there is one."""
    mean, low, high = (figure[name] for name in ("mean", "low", "high"))
    if low is None:
        return f"{mean:+.{digits}f}"
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
