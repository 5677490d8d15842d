"""`longtake finetune`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from . import training as t


def finetune(
    experiment: o.ExperimentArg,
    data: o.Data,
    out: Annotated[Path, o.out_option("the run's folder")],
    start: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="the Stage I run that the encoder comes from: its folder, a checkpoint, or "
            "weights that ship; with --resume, for a run that has no checkpoint yet",
        ),
    ] = None,
    resume: t.Resume = None,
    seed: t.Seed = None,
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Stage II: train the DiT (LoRA) and the encoder to go on from the memory of the past.

    The encoder goes on from a Stage I run, LoRA begins afresh. Of an experiment of Stage I its
    Stage II is trained, as the recipe of its backbone has it.

    Example: longtake finetune tiny-wan-2x2x2-finetune --data stores/clips --out runs/second --start
    runs/first
    """
    from ..config import change, load_experiment
    from ..config.recipe import second_stage
    from ..train import finetune as training

    going_on = t.resumed(resume, out)
    named = load_experiment(experiment)[1]
    changed = change(second_stage(named), t.changes_of(sets, seed))
    notice = o.SwapNotice.of(changed)
    if named.finetune is None:
        notice.add(f"{named.name} is Stage I: its Stage II, {changed.spec.name}, is trained")
    checkpoint = t.started(start)
    work = partial(training.finetune, changed.spec, data, out, resume=going_on, start=checkpoint)
    t.run_training("finetune", lambda report: work(progress=report), notice, as_json=as_json)
