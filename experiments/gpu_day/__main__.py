"""All that is due on a GPU, in runs of at most ten minutes that go on where the last one stopped.

    python -m longtake.experiments.gpu_day --out day --videos videos

runs `tests` (those marked gpu), `bench` (the program's own), `kernels` (encoders beside peers and
the device's limits), `backbones` (published ones at their true sizes), `memory-cap` (what fits
12 GB), `train` (a start in closed form, Stage I, measure) and `table` (Table 1), each in a process
of its own, and writes `day/<step>.json` and `day/<step>.log`.
Exit 0: all done. Exit 3: run the same command again. Exit 1: a step failed, and its file says what;
the others ran all the same. Exit 2: bad input. `--tiny` runs every step in a tiny form on any
machine. See README.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...core.errors import UserError
from ...core.plugin_errors import exit_code
from ...core.tools.files import check_out_folder, read_json, write_json
from ...core.tools.words import names_like
from ..common import command_line, commit, machine_facts
from .day import DONE, FAILED, OPEN, Session, StepResult, TimeIsUp

STEPS = ("tests", "bench", "kernels", "backbones", "memory-cap", "train", "table")
GRACE = 25.0  # seconds behind the end until a step that does not stop is killed
LEAST, TINY_LEAST = 60.0, 5.0  # seconds without which a step is not begun
AGAIN = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and return the exit code."""
    args = _parser().parse_args(arguments)
    try:
        session = _session(args)
        if args.one:
            return _work(args.steps[0], session)
        return _run_steps(args, session)
    except Exception as error:  # a plugin may raise anything
        return exit_code(error, "gpu_day")


def _parser() -> argparse.ArgumentParser:
    parser = command_line("gpu_day", __doc__)
    steps = f"of {', '.join(STEPS)}; none named: all that are not done"
    parser.add_argument("steps", nargs="*", metavar="STEP", help=steps)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--keep", type=Path, help="folder of stores and runs; default OUT/keep")
    parser.add_argument("--videos", type=Path, help="folder with train/ and val/")
    parser.add_argument("--minutes", type=float, default=9.0, help="length of this run, minutes")
    parser.add_argument("--tiny", action="store_true", help="tiny forms, on any machine")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    return parser


def _session(args: argparse.Namespace) -> Session:
    """Return the session that the arguments describe.

    Raises:
        UserError: an unknown step, no time, folders that cannot be written, or videos that are
            needed and not there.
    """
    check_out_folder(args.out)
    if args.keep:
        check_out_folder(args.keep, "--keep")
    for step in args.steps:
        if step not in STEPS:
            raise UserError(f"unknown step {step!r}; known: {names_like(step, STEPS)}")
    if not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes:g}: must be above 0")
    with_videos = [step for step in args.steps or STEPS if step in ("train", "table")]
    missing = args.videos is None or not (args.videos / "train").is_dir()
    if with_videos and not args.tiny and missing:
        raise UserError(f"`{with_videos[0]}` needs --videos, a folder that holds train/ and val/")
    return Session(
        out=args.out,
        keep=args.keep or args.out / "keep",
        videos=None if args.tiny else args.videos,
        tiny=args.tiny,
        end=args.end or time.time() + 60 * args.minutes,
    )


def _run_steps(args: argparse.Namespace, session: Session) -> int:
    if not args.tiny:
        _check_cuda()
    states = {}
    for step in args.steps or [step for step in STEPS if _state(session, step) != DONE]:
        print(f"{step} ...", flush=True)
        states[step] = _run_step(args, session, step)
        error = _read(session, step).get("error")
        print(f"{step}: {states[step]}{f': {error}' if error else ''}", flush=True)
    if FAILED in states.values():
        return 1
    return AGAIN if OPEN in states.values() else 0


def _check_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UserError("no CUDA device is here; --tiny runs every step in a tiny form anywhere")


def _run_step(args: argparse.Namespace, session: Session, step: str) -> str:
    """Run a step in a process of its own, which is ended with the session; return its state."""
    if session.end - time.time() < (TINY_LEAST if session.tiny else LEAST):
        return OPEN
    command = [sys.executable, "-m", "longtake.experiments.gpu_day", step]
    session.out.mkdir(parents=True, exist_ok=True)
    began, ended = time.time(), "0"
    with (session.out / f"{step}.log").open("w", encoding="utf-8") as log:
        try:
            limit = session.end - time.time() + GRACE
            done = subprocess.run(
                [*command, *_options(args, session)],
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
            )
            ended = str(done.returncode)
        except subprocess.TimeoutExpired:
            ended = f"killed after {limit:.0f} s"
    result = _read(session, step)
    if result.get("ended", 0) < began:  # it died without writing how it ended
        write_json(session.out / f"{step}.json", _died(result, step, ended))
    return _state(session, step)


def _options(args: argparse.Namespace, session: Session) -> list[str]:
    options = ["--one", "--out", str(session.out), "--keep", str(session.keep)]
    options += ["--end", str(session.end)]
    options += ["--videos", str(args.videos)] if args.videos else []
    return [*options, *(["--tiny"] if session.tiny else [])]


def _died(result: dict[str, Any], step: str, ended: str) -> dict[str, Any]:
    error = f"its process ended without a result ({ended}); {step}.log holds its last words"
    return {**result, "step": step, "state": FAILED, "error": error, "ended": time.time()}


def _read(session: Session, step: str) -> dict[str, Any]:
    path = session.out / f"{step}.json"
    return dict(read_json(path, "result of a GPU day")) if path.exists() else {}


def _state(session: Session, step: str) -> str:
    return str(_read(session, step).get("state", OPEN))


def _work(step: str, session: Session) -> int:
    """Run a step in this process and write `<step>.json`; return 0 unless it failed."""
    head = {
        "step": step,
        "tiny": session.tiny,
        "at": commit(),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv[1:],
        "machine": machine_facts(),
    }
    result = StepResult.open(session.out / f"{step}.json", head, session)
    result.write(OPEN)
    try:
        _function(step)(session, result)
    except (TimeIsUp, KeyboardInterrupt):
        result.finish(OPEN)
        return 0
    except Exception as error:  # the file says it, and the log has where
        traceback.print_exc()
        result.finish(FAILED, f"{type(error).__name__}: {error}")
        return 1
    result.finish(DONE)
    return 0


def _function(step: str) -> Callable[[Session, StepResult], None]:
    """Return the function of a step; others are not imported: what they need may be missing."""
    if step == "tests":
        from . import checks

        return checks.run
    if step == "bench":
        from . import bench

        return bench.run
    if step == "kernels":
        from . import kernels

        return kernels.run
    if step == "backbones":
        from . import backbones

        return backbones.run
    if step == "memory-cap":
        from . import cap

        return cap.run
    from . import training

    return training.run if step == "train" else training.run_table


if __name__ == "__main__":
    sys.exit(main())
