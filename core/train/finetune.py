"""The `finetune` verb: Stage II over a store, on the trainer that Stage I has."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from ..experiment import Experiment
from ..tools.progress import Report
from .pretrain import train_on
from .trainer import TrainResult


def finetune(
    experiment: Experiment,
    data: Path,
    out: Path,
    *,
    resume: bool | Path = False,
    start: Path | None = None,
    progress: Report | None = None,
) -> TrainResult:
    """Train a video model to go on from the memory of its past; return how it ended.

    Each clip is cut into a past and a target (`experiment.finetune`). The encoder comes from a
    Stage I run and goes on training; LoRA begins afresh (Eq. 4).

    Args:
        experiment: what to train and how; `second_stage` makes one of a Stage I experiment.
        data: a latent store.
        out: the run's folder.
        resume: go on from the newest checkpoint of `out`; without one, begin. A path: go on from
            that checkpoint of `out`; newer ones are set aside.
        start: the checkpoint folder to begin from; of no use once `out` has a checkpoint.
        progress: called with step, steps and a note after every step.

    Raises:
        UserError: the experiment is of another stage, `start` is missing or not wanted, the store
            has no clip that can be cut so, or as `pretrain`.
        DeadMemory: some parameters of the memory do not train.
        LongtakeError: the loss is not finite.
    """
    if experiment.finetune is None:
        raise UserError(
            f"{experiment.name} is no Stage II: give it a `finetune`, as `longtake finetune` does"
        )
    return train_on(experiment, data, out, resume=resume, start=start, progress=progress)
