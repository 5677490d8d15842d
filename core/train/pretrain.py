"""The `pretrain` verb: Stage 0 or Stage I over a store, resumable to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from .. import config as edge
from ..data.store import Store, check_fits
from ..data.windows import WindowBatches, Windows
from ..errors import UserError
from ..experiment import Experiment, TrainSpec
from ..model import Model, build_model, compressor_needs
from ..registry import build
from ..tools.device import pick_device, versions
from ..tools.files import only_parts, read_object, remove_parts, write_json
from . import distributed as sharded
from .checkpoint import (
    checkpoints,
    load_average,
    load_model,
    load_optimizer,
    load_raw,
    read_notes,
    realign,
    step_of,
)
from .ema import Average, trained
from .liveness import Liveness
from .log import Diary, RunLog
from .loss import StageOne
from .optim import freeze, make_optimizer
from .trainer import Progress, Saver, Stepper, Trainer, TrainResult
from .worker import Worker

# ⟦core/train/run.py⟧ The folder of a run: its spec, and whether it may be begun or gone on with.

FREE = (  # may change on resume
    "steps", "save_every", "save_minutes", "keep", "log_every", "gain_every", "accumulate",
)  # fmt: skip


def check_run(experiment: Experiment, run: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint to go on from, or None to begin; writes nothing.

    Raises:
        UserError: the folder holds a run and `resume` is not set, or a run of another spec, or
            other files.
    """
    spec = run / "spec.json"
    if not spec.exists():
        if run.is_dir() and not only_parts(run):
            raise UserError(f"--out {run} is a folder with other files in it, and no run")
        return None
    newest = checkpoints(run)[-1] if checkpoints(run) else None
    if newest is None:  # nothing was trained yet, so nothing can be lost
        return None
    if not resume:
        raise UserError(f"{run} holds a run: go on with --resume latest, or name another --out")
    _same_experiment(experiment, read_object(spec, "run", "experiment")["experiment"], run)
    return newest


def claim_run(experiment: Experiment, run: Path) -> None:
    """Write the resolved spec into the run's folder, and clear what a kill left half-written."""
    write_json(run / "spec.json", resolved(experiment))
    remove_parts(run)


def _same_experiment(experiment: Experiment, found: Any, run: Path) -> None:
    free = {name: getattr(experiment.train, name) for name in FREE}
    before = edge.from_json(found, Experiment)
    before = attrs.evolve(before, train=attrs.evolve(before.train, **free))
    if before == experiment:
        return
    old, new = edge.to_json(before), edge.to_json(experiment)
    odd = [f"{k} was {a}, is {b}" for k, a, b in differences(old, new)]
    raise UserError(f"{run} is a run of another spec: {'; '.join(odd[:3])}")


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Return (path, old, new) of every leaf in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        parts = [differences(old.get(k), new.get(k), f"{path}.{k}".lstrip(".")) for k in keys]
        return [row for part in parts for row in part]
    return [] if old == new else [(path, old, new)]


def resolved(experiment: Experiment) -> dict[str, Any]:
    """Return what spec.json holds: the experiment, resolved, and the versions it ran with."""
    return {"experiment": edge.to_json(experiment), "versions": versions()}


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
    """Return one process of a run as it begins, or as its newest checkpoint left it."""
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
    """Return the model that trains: of a checkpoint, or as the experiment begins."""
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
