"""The `pretrain` verb: Stage 0 or Stage I over a store, resumable to the bit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from .. import config
from ..data.store import Store, check_fits
from ..data.windows import WindowBatches, WindowSampler
from ..errors import UserError
from ..experiment import Experiment, TrainSpec
from ..model import Model, build_model, compressor_needs
from ..registry import origins
from ..tools.device import pick_device, versions
from ..tools.files import only_parts, read_object, remove_parts, write_json
from ..tools.progress import Report
from . import distributed
from .checkpoint import (
    checkpoints,
    load_average,
    load_model,
    load_optimizer,
    load_raw,
    read_state,
    step_of,
)
from .ema import EMA, trainable_parameters
from .liveness import Liveness
from .log import LogWriter, MetricsLogger
from .optim import make_optimizer
from .step import build_stage
from .trainer import Trainer, TrainResult
from .worker import TrainWorker

FREE = (  # may change on resume
    "steps", "save_every", "save_minutes", "keep", "log_every", "gain_every", "accumulate",
)  # fmt: skip


def pretrain(
    experiment: Experiment,
    data: Path,
    out: Path,
    *,
    resume: bool = False,
    start: Path | None = None,
    progress: Report | None = None,
) -> TrainResult:
    """Train on a store and return how it ended; checkpoints and logs go to `out`.

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
    return trainer.train(progress)


def _prepare(
    experiment: Experiment, store: Store, out: Path, *, resume: bool, start: Path | None
) -> Trainer:
    """Return the trainer of a run, fresh or of its newest checkpoint; a refusal writes nothing."""
    needs, train = compressor_needs(experiment), experiment.train
    check_fits(experiment, store, needs.rates)
    newest = check_run(experiment, out, resume=resume)
    windows = WindowSampler.of(store, experiment.backbone.geometry, train, needs)
    distributed.check_launch(train)
    accelerator = _accelerator()
    check_shares(train, accelerator.num_processes)
    worker = _worker(experiment, store, out, accelerator, newest, start)
    if worker.writes:
        claim_run(experiment, out)
    accelerator.wait_for_everyone()
    step, state = (step_of(newest), read_state(newest)) if newest else (0, {"live": bool(start)})
    watched = experiment.remembers and not state["live"]
    writer = LogWriter(out, step=step) if worker.writes else None
    world = (accelerator.process_index, accelerator.num_processes)
    return Trainer(
        worker=worker,
        batches=WindowBatches(store, windows, needs, train.steps, *world),
        logger=MetricsLogger.of(worker, writer, store, state),
        liveness=Liveness.of(worker.stage) if watched else None,
        step=step,
        saved_step=step if newest else -1,
    )


def _worker(
    experiment: Experiment,
    store: Store,
    out: Path,
    accelerator: Any,
    newest: Path | None,
    start: Path | None,
) -> TrainWorker:
    """Return one process of a run as it begins, or as its newest checkpoint left it."""
    train = experiment.train
    model = _model(experiment, newest or start, accelerator)
    stage = build_stage(model, store.null_text())
    optimizer = make_optimizer(stage, train)
    if newest and train.ema:
        load_raw(newest, trainable_parameters(stage))
    wrapped, prepared = distributed.prepare(accelerator, stage, optimizer)
    if newest:
        load_optimizer(newest, prepared.optimizer)
    average = EMA.of(trainable_parameters(stage), train.ema) if train.ema else None
    if newest and average:
        load_average(newest, average)
    return TrainWorker(
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
    if origin is None:
        _warn_of_random_base(experiment)
    model = load_model(origin, experiment) if origin else build_model(experiment, adapters=True)
    if accelerator.device.type == "cpu":
        _realign(model.backbone)
    return model


def _warn_of_random_base(experiment: Experiment) -> None:
    """Log that LoRA is trained over random weights, where it is."""
    backbone = config.to_json(experiment.backbone)
    if experiment.train.trains == "lora" and backbone.get("weights", "") is None:
        logging.getLogger(__name__).warning(
            "backbone.weights is null and train.trains is lora: LoRA trains over random weights, "
            "which stay random; name weights, or set train.trains=all"
        )


def _realign(module: nn.Module) -> None:
    """Move weights that lie in a mapped file into memory of torch's own.

    A file puts tensors at any address, torch at multiples of 64 bytes. Kernels on a CPU sum in
    another order where an address is odd, so that a resumed run would differ in the last bit.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def _accelerator() -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # a second run in one process may be launched otherwise
    # the stage runs under autocast itself, with shards as without
    return Accelerator(mixed_precision="no", cpu=pick_device().type == "cpu")


def check_shares(spec: TrainSpec, processes: int) -> None:
    """Refuse a batch that cannot be dealt evenly over processes and micro-batches."""
    if spec.batch % (processes * spec.accumulate):
        raise UserError(
            f"train.batch {spec.batch} cannot be dealt evenly over {processes} processes and "
            f"train.accumulate {spec.accumulate}: make it a multiple of "
            f"{processes * spec.accumulate}"
        )


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
    saved = checkpoints(run)
    if not saved:  # nothing was trained yet, so nothing can be lost
        return None
    if not resume:
        raise UserError(f"{run} holds a run: go on with --resume latest, or name another --out")
    _check_same(experiment, read_object(spec, "run", "experiment")["experiment"], run)
    return saved[-1]


def _check_same(experiment: Experiment, data: Any, run: Path) -> None:
    """Refuse to go on with a run whose experiment differs in more than `FREE`: UserError.

    What `measure` looks at may change: training never reads it.
    """
    free = {name: getattr(experiment.train, name) for name in FREE}
    before = config.from_json(data, Experiment)
    train = attrs.evolve(before.train, **free)
    before = attrs.evolve(before, train=train, measure=experiment.measure)
    if before == experiment:
        return
    old, new = config.to_json(before), config.to_json(experiment)
    changes = [f"{path} was {a}, is {b}" for path, a, b in config.differences(old, new)]
    raise UserError(f"{run} is a run of another spec: {'; '.join(changes[:3])}")


def claim_run(experiment: Experiment, run: Path) -> None:
    """Write the resolved spec into the run's folder, and clear what a kill left half-written."""
    write_json(run / "spec.json", resolved_spec(experiment))
    remove_parts(run)


def resolved_spec(experiment: Experiment) -> dict[str, Any]:
    """Return what spec.json holds: the experiment, resolved, and what it ran with.

    `versions` are of packages, `plugins` of the third parties whose plugins it names.
    """
    return {
        "experiment": config.to_json(experiment),
        "versions": versions(),
        "plugins": origins(experiment),
    }
