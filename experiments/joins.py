r"""A picture of how a take goes on: frames around the join to the user's video, then in even steps.

    longtake generate tiny-wan-2x2x2-finetune --extend clips/one.mp4 --out takes/one \
        --prompt "toys on a windowsill" --seconds 10
    python -m longtake.experiments.joins takes/one --out joins.jpg

The take must be delivered (`take.mp4`) and say of itself where its segments join (`report.json`);
of one that begins with no video the first join of two segments is shown. Exit 2: bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from einops import rearrange

from ..core.errors import UserError
from ..core.measure.strips import Strip, StripRow, evenly_spaced
from ..core.pages.picture import save_picture
from ..core.plugin_errors import exit_code
from ..core.tools.files import read_json
from ..core.video.decode import Pixels
from ..core.video.read import iter_frames
from .common import command_line

AROUND = 3  # frames on each side of a join
VIDEO, REPORT = "take.mp4", "report.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture and return the exit code."""
    parser = command_line("joins", __doc__)
    parser.add_argument("take", type=Path, help="a take's folder")
    parser.add_argument("--out", type=Path, required=True, help="the picture: .jpg, .png or .webp")
    parser.add_argument("--credit", default="", help="who made the video, under what licence")
    args = parser.parse_args(arguments)
    try:
        print(save_picture(strips(args.take), args.out, credit=args.credit))
    except Exception as error:  # a file may be anything
        return exit_code(error, "joins")
    return 0


def strips(take: Path) -> list[Strip]:
    """Return the frames around the first join of a take, and some from there to its end.

    Args:
        take: its folder.

    Raises:
        UserError: there is no such take, it is not delivered, or it is of one segment.
    """
    report = read_json(take / REPORT, "report of a take (`longtake generate` writes it)")
    if not report["joins"]:
        raise UserError(f"{take} is of one segment: nothing joins")
    join, fps = report["joins"][0]["frame"], report["fps"]
    frames = list(chain.from_iterable(iter_frames(take / VIDEO, fps=fps)))
    near = [k for k in range(join - AROUND, join + AROUND) if 0 <= k < len(frames)]
    spaced = [join + k for k in evenly_spaced(len(frames) - join, len(near))]
    ends = [other["seconds"] for other in report["joins"]]
    later = f"segments begin at {', '.join(f'{s:.1f}' for s in ends)} s"
    return [
        _strip(frames, near, fps, "around the join", f"made from {join / fps:.1f} s on"),
        _strip(frames, spaced, fps, "what was made", later),
    ]


def _strip(
    frames: Sequence[Pixels], chosen: Sequence[int], fps: float, title: str, note: str
) -> Strip:
    pictures = torch.from_numpy(np.stack([frames[k] for k in chosen]))
    row = StripRow(
        label="take", kind="learned", frames=rearrange(pictures, "k h w c -> k c h w"), figures={}
    )
    times = tuple(k / fps for k in chosen)
    return Strip(title=title, caption=title, note=note, times=times, rows=(row,), metrics=())


if __name__ == "__main__":
    sys.exit(main())
