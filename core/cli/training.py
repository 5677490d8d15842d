"""What the verbs that train share: their options, and how a run of training is shown."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..tools.progress import progress_bar
from . import options as o

if TYPE_CHECKING:
    from ..tools.progress import Report
    from ..train.trainer import TrainResult

Resume = Annotated[
    str | None,
    typer.Option(help="latest: go on where the run is; or one of its checkpoints, by its step"),
]
Seed = Annotated[int | None, typer.Option(help="same as --set train.seed=", min=0, max=2**62)]


def changes_of(sets: list[str] | None, seed: int | None) -> list[str]:
    """Return what `--set` and `--seed` change, as `--set` has it."""
    return [*(sets or []), *([] if seed is None else [f"train.seed={seed}"])]


def resumed(resume: str | None, out: Path) -> bool | Path:
    """Return what `--resume` asks for: nothing, the newest checkpoint of `--out`, or one of it.

    Raises:
        UserError: the run has no such checkpoint.
    """
    from ..train.checkpoint import find_checkpoint

    if resume in (None, "latest"):
        return resume == "latest"
    return find_checkpoint(out, str(resume))


def started(start: str | None) -> Path | None:
    """Return the checkpoint that `--start` names, by a run, a checkpoint or weights that ship.

    Raises:
        UserError: there is none.
    """
    from ..train.checkpoint import read_run

    return None if start is None else read_run(o.find_run(start))[1]


def run_training(
    verb: str,
    train: Callable[[Report | None], TrainResult],
    notice: o.SwapNotice,
    *,
    as_json: bool,
) -> None:
    """Train with a progress bar, print how it ended, and exit with 130 where it was stopped."""
    from ..tools.device import is_main_process

    prints = is_main_process()
    with progress_bar(verb) if prints else nullcontext(None) as report:
        result = train(notice.before(report) if report else None)
    if prints:
        notice.say()
        summary = {
            "run": str(result.run),
            "step": result.step,
            "loss": result.loss,
            "memory_gain": result.gain,
            "stopped": result.stopped,
        }
        ended = "stopped and saved" if result.stopped else "done"
        loss = "" if result.loss is None else f", loss {result.loss:.4f}"
        gain = "" if result.gain is None else f", memory_gain {result.gain:+.4f}"
        line = f"{result.run}: {ended} at step {result.step}{loss}{gain}"
        o.print_result(summary, [line], as_json=as_json)
    if result.stopped:
        raise SystemExit(130)
