"""All that is due on a GPU, in runs of at most ten minutes that go on where the last one stopped.

    python -m longtake.experiments.gpu_day --out day --videos videos

runs `tests` (those marked gpu), `bench` (beside the device's limits), `backbones` (published ones
at their true sizes), `memory-cap` (what fits 12 GB), `train` (Stage 0, Stage I, measure) and
`table` (Table 1), each in a process of its own, and writes `day/<step>.json` and `day/<step>.log`.
Exit 0: all done. Exit 3: run the same command again. Exit 1: a step failed, and its file says what;
the others ran all the same. Exit 2: bad input. `--tiny` runs every step in a tiny form on any
machine. See README.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.tools.files import read_json, write_json
from .day import DONE, FAILED, OPEN, STEPS, Day, work

GRACE = 25.0  # seconds behind the end until a step that does not stop is killed
LEAST, TINY_LEAST = 60.0, 5.0  # seconds without which a step is not begun
AGAIN = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and give the exit code."""
    args = _parser().parse_args(arguments)
    try:
        day = _day(args)
        if args.one:
            return work(args.steps[0], day)
        return _all(args, day)
    except UserError as error:
        print(f"gpu_day: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m longtake.experiments.gpu_day",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = f"of {', '.join(STEPS)}; none named: all that are not done"
    found.add_argument("steps", nargs="*", metavar="STEP", help=steps)
    found.add_argument("--out", type=Path, required=True, help="folder of the results")
    found.add_argument("--keep", type=Path, help="folder of stores and runs; default OUT/keep")
    found.add_argument("--videos", type=Path, help="folder with train/ and val/")
    found.add_argument("--minutes", type=float, default=9.0, help="length of this run, minutes")
    found.add_argument("--tiny", action="store_true", help="tiny forms, on any machine")
    found.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    found.add_argument("--end", type=float, help=argparse.SUPPRESS)
    return found


def _day(args: argparse.Namespace) -> Day:
    """Return the day that the arguments describe.

    Raises:
        UserError: an unknown step, no time, or videos that are needed and not there.
    """
    for step in args.steps:
        if step not in STEPS:
            raise UserError(f"unknown step {step!r}; known: {', '.join(STEPS)}")
    if not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes:g}: must be above 0")
    needy = [step for step in args.steps or STEPS if step in ("train", "table")]
    if needy and not args.tiny and (args.videos is None or not (args.videos / "train").is_dir()):
        raise UserError(f"`{needy[0]}` needs --videos, a folder that holds train/ and val/")
    return Day(
        out=args.out,
        keep=args.keep or args.out / "keep",
        videos=None if args.tiny else args.videos,
        tiny=args.tiny,
        end=args.end or time.time() + 60 * args.minutes,
    )


def _all(args: argparse.Namespace, day: Day) -> int:
    if not args.tiny:
        _needs_cuda()
    states = {}
    for step in args.steps or [s for s in STEPS if _state(day, s) != DONE]:
        print(f"{step} ...", flush=True)
        states[step] = _step(args, day, step)
        print(f"{step}: {states[step]}{_why(day, step)}", flush=True)
    if FAILED in states.values():
        return 1
    return AGAIN if OPEN in states.values() else 0


def _needs_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError("no CUDA device is here; --tiny runs every step in a tiny form anywhere")


def _step(args: argparse.Namespace, day: Day, step: str) -> str:
    """Run one step in a process of its own, which the end of the day bounds, and give its state."""
    if day.end - time.time() < (TINY_LEAST if day.tiny else LEAST):
        return OPEN
    command = [sys.executable, "-m", "longtake.experiments.gpu_day", step, *_options(args, day)]
    day.out.mkdir(parents=True, exist_ok=True)
    began, ended = time.time(), "0"
    with (day.out / f"{step}.log").open("w", encoding="utf-8") as log:
        try:
            limit = day.end - time.time() + GRACE
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, timeout=limit, check=False
            )
            ended = str(done.returncode)
        except subprocess.TimeoutExpired:
            ended = f"killed after {limit:.0f} s"
    found = _read(day, step)
    if found.get("ended", 0) < began:  # it died without a last word
        write_json(day.out / f"{step}.json", _died(found, step, ended))
    return _state(day, step)


def _options(args: argparse.Namespace, day: Day) -> list[str]:
    found = ["--one", "--out", str(day.out), "--keep", str(day.keep), "--end", str(day.end)]
    found += ["--videos", str(args.videos)] if args.videos else []
    return [*found, *(["--tiny"] if day.tiny else [])]


def _died(found: dict[str, Any], step: str, ended: str) -> dict[str, Any]:
    error = f"its process ended without a result ({ended}); {step}.log holds its last words"
    return {**found, "step": step, "state": FAILED, "error": error, "ended": time.time()}


def _read(day: Day, step: str) -> dict[str, Any]:
    path = day.out / f"{step}.json"
    return dict(read_json(path, "result of a GPU day")) if path.exists() else {}


def _state(day: Day, step: str) -> str:
    return str(_read(day, step).get("state", OPEN))


def _why(day: Day, step: str) -> str:
    error = _read(day, step).get("error")
    return f": {error}" if error else ""


if __name__ == "__main__":
    sys.exit(main())
