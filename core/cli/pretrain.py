"""`longtake pretrain`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from . import training as t


def pretrain(
    experiment: o.ExperimentArg,
    data: o.Data,
    out: Annotated[Path, o.out_option("the run's folder")],
    resume: t.Resume = None,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="begin with the weights of another run, a checkpoint, or weights that ship; with "
            "--resume, for a run that has no checkpoint yet",
        ),
    ] = None,
    seed: t.Seed = None,
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Stage I: train the encoder (and LoRA) to give back any frame of the past.

    An experiment without compressors, such as tiny-plain, is Stage 0: a plain video model.

    Example: longtake pretrain tiny-wan-2x2x2 --data stores/clips --out runs/first --start
    tiny-wan-2x2x2
    """
    from ..train import pretrain as training

    going_on = t.resumed(resume, out)
    changed = o.read_experiment(experiment, t.changes_of(sets, seed))[1]
    checkpoint = t.started(start)
    work = partial(training.pretrain, changed.spec, data, out, resume=going_on, start=checkpoint)
    notice = o.SwapNotice.of(changed)
    t.run_training("pretrain", lambda report: work(progress=report), notice, as_json=as_json)
