"""The `pretrain` verb: Stage 0 or Stage I over a store, resumable to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.fits import check_fits
from ..data.store import Store
from ..data.windows import WindowBatches, Windows
from ..device import pick_device
from ..errors import UserError
from ..experiment import Experiment, TrainSpec
from ..model import Model, build_model, compressor_needs
from ..registry import build
from . import sharded
from .checkpoint import load_model, step_of
from .diary import Diary
from .ema import Average, trained
from .liveness import Liveness
from .log import RunLog
from .loop import Progress, Trainer, TrainResult
from .optim import freeze, make_optimizer
from .run import check_run, claim_run
from .saver import Saver
from .stage import StageOne
from .state import load_average, load_optimizer, load_raw, read_notes, realign
from .step import Stepper
from .worker import Worker


def pretrain(
    experiment: Experiment,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    start: Path | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train on a store and give how it ended; checkpoints and logs go to `out`.

    Stage I trains memory and what reads it. An experiment without compressors is Stage 0: its
    backbone is trained as a plain video model, on the frames that the masker picks as targets.

    Args:
        experiment: what to train and how.
        data: a latent store.
        out: the run's folder.
        resume: go on from the newest checkpoint of `out`; without one, begin.
        start: weights to begin from (a checkpoint folder); a fresh optimizer.
        progress: called with step, steps and a note after every step.

    Raises:
        UserError: the store or the run is of another spec, or `out` holds a run and `resume` is
            not set.
        DeadMemory: some parameters of the memory do not train.
        LongtakeError: the loss is not finite.
    """
    trainer = _prepare(experiment, Store.open(data), out, resume=resume, start=start)
    if trainer.step >= experiment.train.steps:
        return trainer.end()
    return trainer.go(progress)


def _prepare(
    experiment: Experiment, store: Store, out: Path, *, resume: bool, start: Path | None
) -> Trainer:
    needs, train = compressor_needs(experiment), experiment.train
    check_store(experiment, store)
    newest = check_run(experiment, out, resume=resume)
    windows = Windows.of(store, experiment.backbone.geometry, train, needs)
    sharded.check_launch(train)
    accelerator = _accelerator()
    check_shares(train, accelerator.num_processes)
    worker = _worker(experiment, store, out, accelerator, newest, start)
    _claim(worker)
    step, notes = (step_of(newest), read_notes(newest)) if newest else (0, {"live": bool(start)})
    watched = experiment.remembers and not notes.get("live", True)  # older releases noted nothing
    log = RunLog(out, step=step) if worker.writes else None
    world = (accelerator.process_index, accelerator.num_processes)
    return Trainer(
        worker=worker,
        batches=WindowBatches(store, windows, needs, train.steps, *world),
        stepper=Stepper(worker, Liveness.of(worker.stage) if watched else None),
        diary=Diary.of(worker, log, store, notes),
        saver=Saver(worker, step if newest else -1),
        step=step,
    )


def _worker(
    experiment: Experiment,
    store: Store,
    out: Path,
    accelerator: Any,
    newest: Path | None,
    start: Path | None,
) -> Worker:
    """Give one process of a run as it begins, or as its newest checkpoint left it."""
    train = experiment.train
    model = _model(experiment, newest or start, accelerator)
    stage = StageOne(model, build(experiment.masker), train, store.null_text())
    optimizer = make_optimizer(stage, train)
    if newest and train.ema:
        load_raw(newest, trained(stage))
    wrapped, prepared = sharded.prepare(accelerator, stage, optimizer)
    if newest:
        load_optimizer(newest, prepared.optimizer)
    average = Average.of(trained(stage), train.ema) if train.ema else None
    if newest and average:
        load_average(newest, average)
    return Worker(
        experiment=experiment,
        run=out,
        model=model,
        stage=stage,
        wrapped=wrapped,
        optimizer=prepared,
        accelerator=accelerator,
        average=average,
    )


def _model(experiment: Experiment, origin: Path | None, accelerator: Any) -> Model:
    """Give the model that trains: of a checkpoint, or as the experiment begins."""
    model = load_model(origin, experiment) if origin else build_model(experiment, adapters=True)
    freeze(model)
    if accelerator.device.type == "cpu":
        realign(model.backbone)
    model.backbone.set_checkpointing(experiment.train.checkpointing)
    return model


def _claim(worker: Worker) -> None:
    if worker.writes:
        claim_run(worker.experiment, worker.run)
    worker.accelerator.wait_for_everyone()


def check_shares(spec: TrainSpec, processes: int) -> None:
    """Refuse a batch that cannot be dealt evenly over processes and micro-batches."""
    if spec.batch % (processes * spec.accumulate):
        raise UserError(
            f"train.batch {spec.batch} cannot be dealt evenly over {processes} processes and "
            f"train.accumulate {spec.accumulate}: make it a multiple of "
            f"{processes * spec.accumulate}"
        )


def check_store(experiment: Experiment, store: Store) -> None:
    """Refuse a store that was cached with another codec, text encoder, rate or frame rate."""
    check_fits(experiment, store, compressor_needs(experiment).rates)


def _accelerator() -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # a second run in one process may be launched otherwise
    # the stage runs under autocast itself, with shards as without
    return Accelerator(mixed_precision="no", cpu=pick_device().type == "cpu")
