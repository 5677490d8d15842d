"""The `pretrain` verb: Stage 0 or Stage I over a store, resumable to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data.store import Store, made_with
from ..data.windows import WindowBatches, Windows
from ..device import pick_device, uses_bf16
from ..experiment import Experiment, TrainSpec
from ..model import build_model, compressor_needs
from ..registry import build
from .checkpoint import load_model, load_optimizer, step_of
from .liveness import Liveness
from .log import RunLog
from .loop import Progress, Trainer, TrainResult
from .optim import freeze, make_optimizer
from .run import check_run, claim_run
from .stage import StageOne


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
        return TrainResult(out, trainer.step, None, None, False)
    return trainer.go(progress)


def _prepare(
    experiment: Experiment, store: Store, out: Path, *, resume: bool, start: Path | None
) -> Trainer:
    needs = compressor_needs(experiment)
    check_store(experiment, store)
    newest = check_run(experiment, out, resume=resume)
    windows = Windows.of(store, experiment.backbone.geometry, experiment.train, needs)
    origin = newest or start
    model = load_model(origin, experiment) if origin else build_model(experiment, adapters=True)
    freeze(model)
    model.backbone.set_checkpointing(experiment.train.checkpointing)
    stage = StageOne(model, build(experiment.masker), experiment.train, store.null_text())
    optimizer = make_optimizer(stage, experiment.train)
    step = step_of(newest) if newest else 0
    if newest:
        load_optimizer(newest, optimizer)
    accelerator = _accelerator(experiment.train)
    wrapped, prepared = accelerator.prepare(stage, optimizer)
    claim_run(experiment, out)
    world = (accelerator.process_index, accelerator.num_processes)
    return Trainer(
        experiment=experiment,
        run=out,
        model=model,
        stage=stage,
        wrapped=wrapped,
        optimizer=prepared,
        accelerator=accelerator,
        batches=WindowBatches(store, windows, needs, experiment.train.steps, *world),
        log=RunLog(out, step=step) if accelerator.is_main_process else None,
        liveness=Liveness.of(stage) if experiment.remembers and not origin else None,
        step=step,
    )


def check_store(experiment: Experiment, store: Store) -> None:
    """Refuse a store that was cached with another codec, text encoder, rate or frame rate."""
    geometry = experiment.backbone.geometry
    codec, text = build(experiment.backbone.codec), build(experiment.backbone.text_encoder)
    identity = made_with(geometry, codec=codec.identity, text=text.identity, fps=geometry.fps)
    store.check(made_with=identity, rates=compressor_needs(experiment).rates)


def _accelerator(spec: TrainSpec) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # a second run in one process may use another precision
    device = pick_device()
    precision = "bf16" if uses_bf16(spec.precision, device) else "no"
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
