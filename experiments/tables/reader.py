"""The DiT that all rows of a table share: the Stage 0 base, taught to read frames beside its own.

Published video DiTs that animate images or extend videos can do this when Stage I begins; the tiny
base, a plain video model, cannot. So before any row it is trained whole with clean, uncompressed
latents of its window as memory. That favours memories made of the DiT's own tokens, as it does on
published DiTs: the page of the table says so.
"""

from __future__ import annotations

from pathlib import Path

from attrs import evolve

from ...core.experiment import Experiment
from ...core.progress import progress_bar
from ...core.train.checkpoint import checkpoints, step_of
from ...core.train.pretrain import pretrain
from ...core.train.run import check_run
from ...plugins.specs import Noise, Window
from .budget import Budget

EVERY = 1024  # latents: more than any window has


def reader(budget: Budget) -> Experiment:
    """Give the experiment that trains the shared DiT."""
    base = budget.shared
    train = evolve(
        base.train,
        steps=budget.reader_steps,
        batch=budget.reader_batch,
        seconds=budget.reader_seconds,
        trains="all",
        optimizer="adamw",
        rate=1e-3,
        warmup=min(20, budget.reader_steps),
        memory_dropout=0.0,
    )
    return evolve(
        base,
        name="table1-reader",
        compressors=(Window(latents=EVERY),),
        masker=Noise(counts=(4,), clean=1.0),
        train=train,
    )


def teach(budget: Budget, store: Path, run: Path) -> bool:
    """Train the shared DiT, going on where it stopped; False if it was stopped again."""
    if trained(budget, run) is not None:
        return True
    with progress_bar("the shared DiT") as report:
        done = pretrain(reader(budget), store, run, resume=True, progress=report)
    return not done.stopped


def trained(budget: Budget, run: Path) -> Path | None:
    """Give the folder of the trained DiT in a run; None where that is still to come.

    Raises:
        UserError: the run is of another spec.
    """
    check_run(reader(budget), run, resume=True)
    found = checkpoints(run)
    whole = bool(found) and step_of(found[-1]) >= budget.reader_steps
    return found[-1] / "backbone" if whole else None
