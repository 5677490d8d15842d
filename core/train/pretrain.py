"""A run of training over a store, resumable to the bit; and the `pretrain` verb, Stage 0 or I.

`train_on` is the run of every stage: what differs is how windows are drawn, the stage's loss, and
what comes from the weights that it starts from. `finetune` is Stage II (`finetune.py`).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import nn

from .. import config
from ..config.recipe import weights_notice
from ..data.continuations import ContinuationSampler, unwatched
from ..data.store import IDENTITY, MOST_NAMED, Store, check_fits
from ..data.windows import TrainingWindows, WindowBatches, WindowSampler
from ..errors import UserError
from ..experiment import Experiment, TrainSpec
from ..interfaces.compressor import Needs
from ..model import Model, build_model, compressor_needs
from ..registry import origins
from ..tools.device import (
    flushed_denormals,
    is_main_process,
    pick_device,
    uses_bf16,
    versions,
)
from ..tools.files import (
    check_out_folder,
    claimed_folder,
    only_parts,
    read_object,
    remove_parts,
    write_json,
)
from ..tools.progress import Report
from . import distributed
from .checkpoint import (
    check_start,
    checkpoints,
    is_base_of,
    is_checkpoint,
    load_average,
    load_model,
    load_optimizer,
    load_parts,
    load_raw,
    older_offered,
    read_state,
    set_aside,
    step_of,
)
from .ema import EMA, trainable_parameters
from .liveness import Liveness
from .log import LogWriter, MetricsLogger
from .optim import learning_rate, make_optimizer
from .past import PastEncoder
from .step import build_stage
from .trainer import Trainer, TrainResult
from .worker import TrainWorker

# What may change on resume: of `train`, and of the experiment what training never reads.
FREE = (
    "steps", "rate", "warmup", "decay", "clip", "precision", "checkpointing", "compile",
    "accumulate", "save_every", "save_minutes", "keep", "log_every", "gain_every",
)  # fmt: skip
UNREAD = ("measure", "metrics", "generate")
BEND = 0.01  # share by which the learning rate may leave its course before that is said


def pretrain(
    experiment: Experiment,
    data: Path,
    out: Path,
    *,
    resume: bool | Path = False,
    start: Path | None = None,
    progress: Report | None = None,
) -> TrainResult:
    """Train on a store and return how it ended; checkpoints and logs go to `out`.

    Stage I trains memory and what reads it. An experiment without compressors is Stage 0: its
    backbone is trained as a plain video model, on the frames that the masker picks as targets.
    The folder is held while the run is at work in it. What changes on resume is said, and kept in
    the `history` of spec.json.

    Args:
        experiment: what to train and how.
        data: a latent store.
        out: the run's folder.
        resume: go on from the newest checkpoint of `out`; without one, begin. A path: go on from
            that checkpoint of `out`; newer ones are set aside.
        start: weights to begin from (a checkpoint folder); a fresh optimizer.
        progress: called with step, steps and a note after every step.

    Raises:
        UserError: the experiment is Stage II, the store or the run is of another spec, `out` holds
            a run and `resume` is not set, another run is at work in it, or it cannot be written.
        DeadMemory: some parameters of the memory do not train.
        LongtakeError: the loss is not finite.
    """
    if experiment.finetune is not None:
        raise UserError(f"{experiment.name} is Stage II: train it with `longtake finetune`")
    return train_on(experiment, data, out, resume=resume, start=start, progress=progress)


def train_on(
    experiment: Experiment,
    data: Path,
    out: Path,
    *,
    resume: bool | Path,
    start: Path | None,
    progress: Report | None,
) -> TrainResult:
    """Train the stage of an experiment on a store; arguments and errors are those of `pretrain`."""
    store = Store.open(data)
    check_out_folder(out)
    with ExitStack() as held:
        held.enter_context(flushed_denormals())  # early: threads that start later do so, too
        dead = held.enter_context(claimed_folder(out)) if is_main_process() else []
        for text in _gone_lines(store):
            _say(text)
        for claim in dead:
            _say(f"{out}: the run that was at work here ended without a word ({claim})")
        trainer = _prepare(experiment, store, out, resume=resume, start=start)
        if trainer.step >= experiment.train.steps:
            return trainer.end()
        return trainer.train(progress)


def _gone_lines(store: Store) -> list[str]:
    """Return what to say of clips whose videos were deleted or renamed: they train, too."""
    gone = store.gone()
    if not gone:
        return []
    named = [f"{old} (now {new})" if new else old for old, new in gone.items()]
    more = f", ... ({len(named)} in all)" if len(named) > MOST_NAMED else ""
    return [
        f"{store.root} trains on clips of videos that the last `longtake cache` did not find: "
        f"{', '.join(named[:MOST_NAMED])}{more}; to leave them out, cache again with --prune"
    ]


def _unwatched_lines(experiment: Experiment, store: Store) -> list[str]:
    """Return what to say of clips whose hard cuts Stage II cannot keep out of targets."""
    count = unwatched(store)
    if experiment.finetune is None or experiment.finetune.cuts_inside or not count:
        return []
    return [
        f"hard cuts were not looked for in {count} of {len(store.records)} clips of {store.root}: "
        "targets may have some in them; to find them, cache again with --set cache.cuts=true"
    ]


def _say(text: str) -> None:
    """Tell the user what is other than might be expected; one process of several speaks."""
    if is_main_process():
        logging.getLogger(__name__).warning("%s", text)


def _prepare(
    experiment: Experiment, store: Store, out: Path, *, resume: bool | Path, start: Path | None
) -> Trainer:
    """Return the trainer of a run, fresh or of its newest checkpoint; a refusal writes nothing."""
    needs, train = compressor_needs(experiment), experiment.train
    check_fits(experiment, store, needs.rates)
    newest = check_run(experiment, out, resume=resume)
    if newest is None and start is not None:
        check_start(start, experiment)
    resumption = Resumption.of(experiment, store, out, newest) if newest else None
    windows = _sampler(experiment, store, needs)
    unused = _unused_start(out, start) if newest else []
    if newest is None:
        _check_start_parts(experiment, out, start)
    else:
        start = None
    distributed.check_launch(train)
    accelerator = _accelerator()
    check_shares(train, accelerator.num_processes)
    ends = PastEncoder.of(experiment, store, accelerator.device)
    trained = start is not None and experiment.finetune is None  # Stage II has a fresh LoRA
    with older_offered(newest or start or out):
        step, state = (step_of(newest), read_state(newest)) if newest else (0, {"live": trained})
        settled = settle_precision(experiment, state, accelerator.device)
        worker = _worker(settled, store, out, accelerator, newest, start)
    check_out_folder(out, room=_least_of_a_checkpoint(worker))
    if worker.writes and step < train.steps:  # a run that is over stays as it was trained
        for text in (*unused, *windows.remarks(store), *_unwatched_lines(experiment, store)):
            _say(text)
        for text in resumption.lines() if resumption else _begun_before(experiment, out):
            _say(f"{out}: {text}")
        begin_run(experiment, store, out, worker.spec.precision, resumption, start=start)
    accelerator.wait_for_everyone()
    watched = experiment.remembers and not state["live"]
    writer = LogWriter(out, step=step) if worker.writes else None
    world = (accelerator.process_index, accelerator.num_processes)
    return Trainer(
        worker=worker,
        batches=WindowBatches(store, windows, needs, train.steps, *world, ends=ends),
        logger=MetricsLogger.of(worker, writer, store, state),
        liveness=Liveness.of(worker.stage) if watched else None,
        step=step,
        saved_step=step if newest else -1,
    )


def _sampler(experiment: Experiment, store: Store, needs: Needs) -> TrainingWindows:
    """Return what draws the windows of the experiment's stage."""
    geometry, train, finetune = experiment.backbone.geometry, experiment.train, experiment.finetune
    if finetune is None:
        return WindowSampler.of(store, geometry, train, needs)
    return ContinuationSampler.of(store, geometry, train, finetune, needs)


def _check_start_parts(experiment: Experiment, out: Path, start: Path | None) -> None:
    """Refuse a Stage II that would begin with other weights than its spec says: UserError."""
    if experiment.finetune is None:
        return
    parts = experiment.finetune.start
    if parts == "none" and start is not None:
        raise UserError(
            f"finetune.start is none (without pretraining): nothing of {start} would be used; "
            "leave out --start, or --set finetune.start=encoder"
        )
    if parts != "none" and start is None:
        what = {"encoder": "its encoder", "adapters": "its LoRA"}.get(parts, "its encoder and LoRA")
        raise UserError(
            f"{out} begins Stage II of {experiment.name}: name the run that {what} comes from by "
            "--start RUN; without pretraining: --set finetune.start=none"
        )


def _unused_start(out: Path, start: Path | None) -> list[str]:
    """Return what to say of a `start` that a run which goes on did not begin with."""
    began = read_object(out / "spec.json", "run", "experiment").get("start")
    if start is None or began is None or _start_name(start) == began:
        return []
    return [f"{out} goes on from its own weights, which began with {began}: --start is not used"]


def settle_precision(
    experiment: Experiment, state: Mapping[str, Any], device: torch.device
) -> Experiment:
    """Return the experiment with `train.precision` as this run has it: fp32 or bf16.

    `auto` is what the run began with, whatever machine goes on with it; a fresh one asks `device`.
    """
    precision = experiment.train.precision
    if precision == "auto":
        fresh = "bf16" if uses_bf16(precision, device) else "fp32"
        precision = state.get("precision", fresh)
    return attrs.evolve(experiment, train=attrs.evolve(experiment.train, precision=precision))


def _least_of_a_checkpoint(worker: TrainWorker) -> int:
    """Return bytes that a checkpoint takes at least: what trains, and one moment of each weight."""
    weights = trainable_parameters(worker.stage).values()
    return sum(2 * weight.numel() * weight.element_size() for weight in weights)


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
    model = _model(experiment, newest, start, accelerator)
    model.encoder.check_device(accelerator.device)
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


def _model(
    experiment: Experiment, newest: Path | None, start: Path | None, accelerator: Any
) -> Model:
    """Return the model that trains: of a checkpoint, of another run, or as it begins."""
    finetune = experiment.finetune
    if newest is None and start is not None and finetune is not None:
        model = load_parts(start, experiment, finetune.start)
    elif newest is None and start is not None and is_base_of(experiment, start):
        model = load_parts(start, experiment, "encoder" if experiment.remembers else "none")
    elif origin := newest or start:
        model = load_model(origin, experiment)
    else:
        model = build_model(experiment, adapters=True)
    if newest is None and (start is None or finetune is not None):
        _warn_of_base(experiment)
    if accelerator.device.type == "cpu":
        _realign(model.backbone)
    return model


def _warn_of_base(experiment: Experiment) -> None:
    """Log that the weights of the DiT began for another memory, or that LoRA has random ones."""
    if notice := weights_notice(experiment):
        logging.getLogger(__name__).warning("%s", notice)
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


def check_run(experiment: Experiment, run: Path, *, resume: bool | Path) -> Path | None:
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
    if resume is False:
        raise UserError(f"{run} holds a run: go on with --resume latest, or name another --out")
    _check_same(experiment, run)
    return resume if isinstance(resume, Path) else saved[-1]


def _check_same(experiment: Experiment, run: Path) -> None:
    """Refuse to go on with a run whose experiment differs in more than may change: UserError."""
    before, after = config.identity(_experiment_of(run)), config.identity(experiment)
    fixed = [
        f"{path} was {old}, is {new}"
        for path, old, new in config.differences(before, after)
        if not _may_change(path)
    ]
    if fixed:
        raise UserError(
            f"{run} is a run of another spec: {'; '.join(fixed[:3])}; on resume may change: "
            f"{', '.join((*(f'train.{name}' for name in FREE), *UNREAD))}"
        )


def _may_change(path: str) -> bool:
    return path.split(".")[0] in UNREAD or path in [f"train.{name}" for name in FREE]


def _spec_changes(experiment: Experiment, run: Path) -> list[tuple[str, Any, Any]]:
    """Return what differs between a run's spec and an experiment, by path, as JSON."""
    old = config.to_json(_experiment_of(run))
    return list(config.differences(old, config.to_json(experiment)))


def _experiment_of(run: Path) -> Experiment:
    data = read_object(run / "spec.json", "run", "experiment")["experiment"]
    experiment: Experiment = config.from_json(data, Experiment)
    return experiment


@frozen(kw_only=True)
class Resumption:
    """How a run goes on: from which checkpoint, and what is other than before.

    Attributes:
        checkpoint: what it goes on from.
        changes: of the spec, of versions and of the store, in words.
        bend: what that does to the course of the learning rate, in words; "": nothing.
        history: of earlier resumptions, as spec.json has it.
    """

    checkpoint: Path
    changes: tuple[str, ...]
    bend: str = ""
    history: list[Any] = field(factory=list)

    @classmethod
    def of(cls, experiment: Experiment, store: Store, run: Path, checkpoint: Path) -> Resumption:
        """Compare what is asked for with what the run's spec.json says."""
        data = read_object(run / "spec.json", "run", "experiment")
        changes = [f"{p} was {a}, is {b}" for p, a, b in _spec_changes(experiment, run)]
        if isinstance(old := data.get("versions"), dict):
            both = {key: (old.get(key), value) for key, value in versions().items()}
            changes += [f"{key} was {a}, is {b}" for key, (a, b) in both.items() if a != b]
        changes += _store_change(data.get("store"), store_facts(store))
        changes += _threads_change(read_state(checkpoint).get("threads"))
        train, step = _experiment_of(run).train, step_of(checkpoint)
        return cls(
            checkpoint=checkpoint,
            changes=tuple(changes),
            bend=_bend(train, experiment.train, step),
            history=list(data.get("history") or []),
        )

    def lines(self) -> list[str]:
        """Return what users must know before the run goes on."""
        lines = [f"from step {step_of(self.checkpoint)} on {text}" for text in self.changes]
        return [*lines, *([self.bend] if self.bend else [])]

    def to_json(self) -> list[Any]:
        """Return the history with this resumption, where anything changed."""
        if not self.changes:
            return self.history
        return [*self.history, {"step": step_of(self.checkpoint), "changes": list(self.changes)}]


def _store_change(old: Any, new: dict[str, Any]) -> list[str]:
    if not isinstance(old, dict) or old.get("fingerprint") == new["fingerprint"]:
        return []
    was, now = (f"{x.get('name')} ({x.get('clips')} clips)" for x in (old, new))
    return [f"the store was {was}, is another: {now}, of which windows are drawn anew"]


def _threads_change(old: Any) -> list[str]:
    """Return what to say of another number of threads, which sums on the CPU in another order."""
    new = torch.get_num_threads()
    if not isinstance(old, int) or old == new or pick_device().type != "cpu":
        return []
    return [f"threads were {old}, are {new}: results differ in their last bits (OMP_NUM_THREADS)"]


def store_facts(store: Store) -> dict[str, Any]:
    """Return what spec.json keeps of the store: its name, its clips, and what tells it from others.

    The fingerprint is of all that training draws from: clips, their sizes and captions.
    """
    digest = hashlib.sha256(json.dumps([store.header[key] for key in IDENTITY]).encode())
    for record in sorted(store.records, key=lambda record: record.id):
        line = record.line()
        unread = ("rates", "added", "revision", "placement")
        read = {key: value for key, value in line.items() if key not in unread}
        digest.update(json.dumps(read, sort_keys=True).encode())
    name = store.root.absolute().name
    return {"name": name, "clips": len(store.records), "fingerprint": digest.hexdigest()[:16]}


def _bend(old: TrainSpec, new: TrainSpec, step: int) -> str:
    """Return how a change of the schedule lifts or lowers the learning rate at a step, in words.

    What follows from another `train.rate` alone is no bend; nor is the course that it had anyway.
    """
    was = learning_rate(old, min(step, old.steps - 1))
    now = learning_rate(new, step) if step < new.steps else was
    expected = was * new.rate / old.rate
    if abs(now - expected) <= BEND * max(now, expected) or step >= new.steps:
        return ""
    factor = now / expected if now > expected else expected / now
    return (
        f"the learning rate goes {'up' if now > expected else 'down'} {factor:.3g} times at step "
        f"{step}, from {expected:.3g} to {now:.3g}: warm-up and decay follow train.steps "
        f"({old.steps} before, {new.steps} now), train.warmup and train.decay"
    )


def _begun_before(experiment: Experiment, run: Path) -> list[str]:
    """Return what to say of a run of another spec that was begun in this folder and never saved."""
    if not (run / "spec.json").exists():
        return []
    try:
        changes = [f"{p} was {a}, is {b}" for p, a, b in _spec_changes(experiment, run)]
    except UserError:  # of a plugin that is not here, or damaged: nothing was trained with it
        return []
    if not changes:
        return []
    return [f"a run of another spec was begun here and never saved ({changes[0]}): it begins anew"]


def begin_run(
    experiment: Experiment,
    store: Store,
    run: Path,
    precision: str,
    resumption: Resumption | None = None,
    *,
    start: Path | None = None,
) -> None:
    """Write the resolved spec into the run's folder, and clear what a kill left half-written.

    `precision`, fp32 or bf16, is what `train.precision` means for this run. Checkpoints newer than
    the one that it goes on from are set aside. `start` is the checkpoint that it began with.
    """
    history = resumption.to_json() if resumption else []
    facts = {"precision": precision, "store": store_facts(store), **_origin(run, resumption, start)}
    data = {**resolved_spec(experiment), **facts}
    for path in set_aside(run, resumption.checkpoint) if resumption else ():
        _say(f"{run}: a newer checkpoint is set aside as {path.name}")
    write_json(run / "spec.json", {**data, "history": history} if history else data)
    remove_parts(run)


def _origin(run: Path, resumption: Resumption | None, start: Path | None) -> dict[str, Any]:
    """Return what spec.json says of the weights that a run began with; nothing of fresh ones."""
    if resumption:
        old = read_object(run / "spec.json", "run", "experiment")
        return {"start": old["start"]} if "start" in old else {}
    return {} if start is None else {"start": _start_name(start)}


def _start_name(start: Path) -> str:
    """Return what spec.json calls a checkpoint, a folder of weights or a bundle."""
    place = start.absolute()
    return f"{place.parent.name}/{place.name}" if is_checkpoint(place) else place.name


def resolved_spec(experiment: Experiment) -> dict[str, Any]:
    """Return what spec.json holds: the experiment, resolved, and what it ran with.

    `versions` are of packages, `plugins` of the third parties whose plugins it names.
    """
    return {
        "experiment": config.to_json(experiment),
        "versions": versions(),
        "plugins": origins(experiment),
    }
