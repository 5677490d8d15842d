"""The return probe: what a memory is worth when a video leaves a view and comes back.

    python -m longtake.experiments.returns tiny-wan-2x2x2 --videos videos/val --out returns

builds clips that come back (over photographs, and real videos run back), gives the history up to
the return to a model, and asks for the frames of the return, which it has not seen: from its
memory, from memory and a sliding window, from the window alone, and from nothing. Writes
`returns.json` and `returns.md`. Exit 2: bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from ..core.data.cache import cache
from ..core.data.store import Store
from ..core.device import pick_device
from ..core.errors import LongtakeError, UserError
from ..core.files import whole_file, write_json
from ..core.model import Model, all_needs
from ..core.progress import progress_bar
from ..core.train.checkpoint import load_run
from ..core.verbs.common import find_run
from .gpu_steps.facts import commit, facts
from .tables.return_clips import build_clips
from .tables.returning import WAYS, Returned, over_clips, returned


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and give the exit code."""
    found = argparse.ArgumentParser(
        prog="python -m longtake.experiments.returns",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("run", help="a run, a checkpoint, or shipped weights by name")
    found.add_argument("--videos", type=Path, help="real videos to run back; default: none")
    found.add_argument("--out", type=Path, required=True, help="folder of clips and results")
    args = found.parse_args(arguments)
    try:
        probe(args.run, args.videos, args.out)
    except UserError as error:
        print(f"returns: {error}", file=sys.stderr)
        return 2
    except LongtakeError as error:
        print(f"returns: {error}", file=sys.stderr)
        return 1
    print(args.out / "returns.md")
    return 0


def probe(run: str, videos: Path | None, out: Path) -> dict[str, Any]:
    """Build and cache the clips, ask for the returns, and write what was found.

    Raises:
        UserError: no such run or folder, or a run without memory.
    """
    if videos is not None and not videos.is_dir():
        raise UserError(f"--videos {videos}: no such folder")
    model = load_run(find_run(run)).to(pick_device())
    if not model.experiment.remembers:
        raise UserError(f"{run} has no memory to probe")
    build_clips(out / "clips", videos)
    clips = _ask(model, _cached(model, out))
    data = {
        "run": run,
        "experiment": model.experiment.name,
        "clips": [attrs.asdict(clip) for clip in clips],
        "over": over_clips(clips),
        "facts": facts(),
        **commit(),
    }
    write_json(out / "returns.json", data)
    with whole_file(out / "returns.md") as part:
        part.write_text(page(data["over"]), encoding="utf-8")
    return data


def _cached(model: Model, out: Path) -> Store:
    spec = attrs.evolve(model.experiment.cache, mirror=False, pixels=True)
    with progress_bar("cache") as report:
        cache(
            attrs.evolve(model.experiment, cache=spec),
            out / "clips",
            out / "store",
            rates=all_needs(model.experiment).rates,
            pixels=True,
            device=pick_device(),
            progress=report,
        )
    return Store.open(out / "store")


def _ask(model: Model, store: Store) -> list[Returned]:
    found, records = [], list(store.records)
    with progress_bar("return") as report:
        for done, record in enumerate(records, start=1):
            found.append(returned(model, store, record))
            report(done, len(records), record.name)
    return found


def page(over: Mapping[str, Mapping[str, Any]]) -> str:
    """Give the table of means, and of what memory has over the other ways."""
    head = ["clips", "n", *WAYS, "memory − window", "memory − none"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for kind, found in over.items():
        means = [f"{found['psnr'][way]['mean']:.2f}" for way in WAYS]
        beyond = [_wide(found["memory_over"][way]) for way in ("window", "none")]
        rows.append([kind, str(found["clips"]), *means, *beyond])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def _wide(found: Mapping[str, Any]) -> str:
    if found["low"] is None:
        return f"{found['mean']:+.2f}"
    return f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


if __name__ == "__main__":
    sys.exit(main())
