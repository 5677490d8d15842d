"""`longtake pretrain`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from .. import config as edge
from ..errors import UserError
from ..tools.device import is_main_process
from ..tools.progress import progress_bar
from ..train.checkpoint import read_run
from ..train.pretrain import pretrain as train
from .options import emit, find_run


def pretrain(
    experiment: str,
    sets: list[str],
    data: Path,
    out: Path,
    *,
    resume: str | None,
    start: Path | None,
    as_json: bool,
) -> None:
    """Train Stage I of an experiment on a store; exit 130 where it was stopped, and saved."""
    if resume not in (None, "latest"):
        raise UserError(f"--resume {resume}: only `latest` can be resumed")
    if resume is not None and start is not None:
        raise UserError("--resume goes on from the run's own weights: leave out --start")
    _, found = edge.load_experiment(experiment)
    found = edge.apply_sets(found, sets)
    origin = None if start is None else read_run(find_run(str(start)))[1]
    speaks = is_main_process()
    with progress_bar("pretrain") if speaks else nullcontext(None) as report:
        result = train(found, data, out, resume=resume is not None, start=origin, progress=report)
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
    if speaks:
        line = f"{result.run}: {ended} at step {result.step}{loss}{gain}"
        emit(summary, [line], as_json=as_json)
    if result.stopped:
        raise SystemExit(130)
