"""The change probe: which state of a thing that changed does a memory give back?

    python -m longtake.experiments.change tiny-wan-2x2x2 --out change

builds clips in which a thing on a photograph is seen in one state, then in another, then not at
all, gives the history up to the return to a model, and asks for the frames of the return: a memory
must give the newer state. It answers from its memory, from memory and a sliding window, from the
window alone, and from nothing; `--window-run` and `--beside` add models with other memories, as of
the return probe. `--photos FOLDER` takes other photographs.

Writes `change.json`, `change.md`, which says how it was asked, and `change.png`; clips and their
latents that are there are used again. Exit 2: bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from ...core.plugin_errors import exit_code
from ...core.tools.files import check_out_folder
from ..returns.ask import ReturnProbe
from ..returns.command import ask_clips, figures_of, probe_parser, write_results
from ..returns.models import cached_clips, load_models
from .ask import ChangeResult, over_clips, probe_change
from .clips import build_clips
from .page import ChangeDescription, page, picture


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and return the exit code."""
    parser = probe_parser("change", __doc__)
    parser.add_argument("--photos", type=Path, help="photographs; default: the built-in clip's")
    args = parser.parse_args(arguments)
    try:
        measure_change(
            args.run, args.out, photos=args.photos, window=args.window_run, beside=args.beside
        )
    except Exception as error:  # a plugin may raise anything
        return exit_code(error, "change")
    print(args.out / "change.md")
    return 0


def measure_change(
    run: str,
    out: Path,
    *,
    photos: Path | None = None,
    window: str | None = None,
    beside: Sequence[str] = (),
) -> dict[str, Any]:
    """Build and cache the clips, ask for what changed, and write the results.

    Args:
        run: a run, a checkpoint, or shipped weights by name.
        out: folder of clips and results.
        photos: a folder of photographs; None: those of the built-in clip.
        window: a run that was trained with a sliding window as its memory; None: none.
        beside: further runs, whose answers are named after their folders.

    Raises:
        UserError: as `load_models` and `build_clips`, or `out` cannot be written.
    """
    check_out_folder(out)
    models = load_models(run, window, beside)
    made = build_clips(out / "clips", photos)
    store = cached_clips(models, out)
    probe = ReturnProbe.of(models.own, store, models.window, models.beside)
    ask = partial(probe_change, probe)
    clips = ask_clips(store, made, ask, "change")
    description = ChangeDescription(
        run=run, window=window, beside=tuple(models.beside),
        experiment=models.own.experiment.name, fps=store.fps,
        photos=None if photos is None else str(photos),
    )  # fmt: skip
    return _write(out, description, clips)


def _write(
    out: Path, description: ChangeDescription, clips: Sequence[ChangeResult]
) -> dict[str, Any]:
    over = over_clips(clips)
    data = {
        **attrs.asdict(description),
        "clips": [figures_of(clip) for clip in clips],
        "over": over,
    }
    whole = write_results(out / "change", data, page(description, clips, over))
    picture(out / "change.png", clips)
    return whole


if __name__ == "__main__":
    sys.exit(main())
