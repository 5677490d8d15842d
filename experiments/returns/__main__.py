"""The return probe: what a memory is worth when a video leaves a view and comes back.

    python -m longtake.experiments.returns tiny-wan-2x2x2 --videos videos/val --out returns

builds clips that come back (over photographs, and real videos run back), gives the history up to
the return to a model, and asks for the frames of the return, which it has not seen: from its
memory, from memory and a sliding window, from the window alone, and from nothing. A model that
was trained with a window as its memory, such as a row of Table 1, answers beside it:

    python -m longtake.experiments.returns RUN --window-run table1/runs/window-0 --out returns

So does any run by `--beside table1/runs/contact-sheet-0`, under the name of its folder.
Writes `returns.json`, `returns.md`, which says how it was asked, and `returns.png`; clips and
their latents that are there are used again. Exit 2: bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from ...core.errors import UserError
from ...core.plugin_errors import exit_code
from ...core.tools.files import check_out_folder
from .ask import ReturnProbe, ReturnResult, over_clips, probe_clip
from .clips import build_clips
from .command import ask_clips, figures_of, probe_parser, write_results
from .models import cached_clips, load_models
from .page import ProbeDescription, page, picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and return the exit code."""
    parser = probe_parser("returns", __doc__)
    parser.add_argument("--videos", type=Path, help="real videos to run back; default: none")
    args = parser.parse_args(arguments)
    try:
        measure_returns(args.run, args.videos, args.out, window=args.window_run, beside=args.beside)
    except Exception as error:  # a plugin may raise anything
        return exit_code(error, "returns")
    print(args.out / "returns.md")
    return 0


def measure_returns(
    run: str,
    videos: Path | None,
    out: Path,
    *,
    window: str | None = None,
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """Build and cache the clips, ask for the returns, and write the results.

    Args:
        run: a run, a checkpoint, or shipped weights by name.
        videos: a folder of real videos to run back; None: none.
        out: folder of clips and results.
        window: a run that was trained with a sliding window as its memory; None: none.
        beside: further runs, whose answers are named after their folders.

    Raises:
        UserError: no such run or folder, an `out` that cannot be written, a run without memory, or
            a `window` or one `beside` that is none or is not on the same codec and shapes.
    """
    if videos is not None and not videos.is_dir():
        raise UserError(f"--videos {videos}: no such folder")
    check_out_folder(out)
    models = load_models(run, window, beside)
    returning = build_clips(out / "clips", videos)
    store = cached_clips(models, out)
    probe = ReturnProbe.of(models.own, store, models.window, models.beside)
    ask = partial(probe_clip, probe)
    clips = ask_clips(store, returning.clips, ask, "return")
    fps, stride = probe.store.fps, probe.codec.stride.time
    name = models.own.experiment.name
    description = ProbeDescription(
        run=run, window=window, experiment=name, fps=fps, stride=stride,
        left_out=returning.left_out, beside=tuple(models.beside),
    )  # fmt: skip
    return _write(out, description, clips)


def _write(
    out: Path, description: ProbeDescription, clips: Sequence[ReturnResult]
) -> dict[str, Any]:
    over = over_clips(clips)
    data = {
        **attrs.asdict(description),
        "clips": [{"kind": clip.kind, **figures_of(clip)} for clip in clips],
        "over": over,
    }
    whole = write_results(out / "returns", data, page(description, clips, over))
    picture(out / "returns.png", clips)
    return whole


if __name__ == "__main__":
    sys.exit(main())
