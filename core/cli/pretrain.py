"""`longtake pretrain`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from ..tools.progress import progress_bar
from . import options as o


def pretrain(
    experiment: o.ExperimentArg,
    data: o.Data,
    out: Annotated[Path, o.out_option("the run's folder")],
    resume: Annotated[
        str | None,
        typer.Option(help="latest: go on where the run is; or one of its checkpoints, by its step"),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="begin with the weights of another run or checkpoint")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="same as --set train.seed=", min=0, max=2**62)
    ] = None,
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Stage I: train the encoder (and LoRA) to give back any frame of the past.

    An experiment without compressors, such as tiny-base, is Stage 0: a plain video model.

    Example: longtake pretrain tiny-wan-2x2x2 --data stores/clips --out runs/first
    """
    from ..tools.device import is_main_process
    from ..train import pretrain as training
    from ..train.checkpoint import find_checkpoint, read_run

    if resume is not None and start is not None:
        raise UserError("--resume goes on from the run's own weights: leave out --start")
    going_on: bool | Path = resume == "latest"
    if resume is not None and not going_on:
        going_on = find_checkpoint(out, resume)
    prints = is_main_process()
    changes = [*(sets or []), *([] if seed is None else [f"train.seed={seed}"])]
    changed = o.read_experiment(experiment, changes)[1]
    notice = o.SwapNotice.of(changed)
    checkpoint = None if start is None else read_run(o.find_run(str(start)))[1]
    with progress_bar("pretrain") if prints else nullcontext(None) as report:
        result = training.pretrain(
            changed.spec,
            data,
            out,
            resume=going_on,
            start=checkpoint,
            progress=notice.before(report) if report else None,
        )
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
