"""The training loop: steps, what is written after them, and an end that keeps what is done."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from attrs import define, field
from torch.nn import Parameter
from torch.utils.data import DataLoader

from ..data.windows import Batch, WindowBatches
from ..errors import LongtakeError, UserError, plugin_label
from ..tools.files import whole_folder
from ..tools.progress import Report
from .checkpoint import prune, save_model, write_state
from .distributed import full_tensor, full_tree, full_weights
from .ema import trainable_parameters
from .liveness import Liveness, memory_parameters
from .log import MetricsLogger
from .loss import DATA
from .optim import learning_rate
from .worker import TrainWorker


@define
class TrainResult:
    """What a run of training ended with.

    Attributes:
        run: its folder.
        step: how many steps it has trained.
        loss: of the last one; None before any.
        gain: memory_gain as last measured; None before that.
        stopped: whether it was asked to end before its last step.
    """

    run: Path
    step: int
    loss: float | None
    gain: float | None
    stopped: bool


@define
class Trainer:
    """One process of a run, from a step to the last one.

    Attributes:
        batches: this process's share of the batch of every step.
        logger: what logs go on from.
        liveness: watches the first steps of a run; None where memory is known to live.
        step: how many steps have been trained.
        saved_step: that of the newest checkpoint; −1: there is none. No step is saved twice.
        saved_time: when that was, or when this process began, by `time.monotonic`.
        weights: all that trains.
    """

    worker: TrainWorker
    batches: WindowBatches
    logger: MetricsLogger
    liveness: Liveness | None
    step: int
    saved_step: int
    saved_time: float = 0.0
    weights: list[Parameter] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.weights = list(trainable_parameters(self.worker.stage).values())

    def train(self, progress: Report | None) -> TrainResult:
        """Train to the end, or to the next Ctrl-C, which saves first."""
        self.logger.start()
        self.saved_time = time.monotonic()
        with stop_on_signals() as stop:
            for batch in self._batches():
                loss = self.train_step(batch)
                self.logger.after_step(self.step, batch, loss)
                if progress:
                    progress(self.step, self.worker.spec.steps, f"loss {loss:.4f}")
                if self._save_or_stop(stop):
                    break
            self.save()
        return self.end(stopped=stop.requested and self.step < self.worker.spec.steps)

    def end(self, *, stopped: bool = False) -> TrainResult:
        """Close the logs and return what the run came to."""
        self.logger.close()
        loss, gain = self.logger.loss, self.logger.gain
        return TrainResult(self.worker.run, self.step, loss, gain, stopped)

    def _batches(self) -> Iterator[Batch]:
        steps = list(range(self.step, self.worker.spec.steps))
        begun = self.step
        try:
            yield from DataLoader(self.batches, batch_size=None, sampler=steps, collate_fn=_same)
        except UserError:  # the store is gone or damaged: keep what is done, then say so
            alone = self.worker.accelerator.num_processes == 1  # others may not have met it
            if alone and self.step > begun:
                self.save()
            raise

    def train_step(self, batch: Batch) -> float:
        """Train one step on this process's share of a batch; return the loss over all of it.

        Raises:
            LongtakeError: the loss or the gradient is not finite; the weights are as they were.
            DeadMemory: some parameters of the memory do not train.
        """
        worker, step = self.worker, self.step
        for group in worker.optimizer.param_groups:
            group["lr"] = learning_rate(worker.spec, step)
        loss = forward_backward(worker, batch, step, self.saved_step)
        named = memory_parameters(worker.stage)
        liveness = None if worker.stage.drops_memory(step) else self.liveness
        if liveness:
            liveness.after_backward(named)
        norm = full_tensor(worker.accelerator.clip_grad_norm_(self.weights, worker.spec.clip))
        if not bool(torch.isfinite(norm)):
            names = worker.gather_names(batch.names)  # the norm is one for all processes
            said = _not_finite("gradient", float(norm), step, names)
            maker = _gradient_maker(worker, batch, step)
            raise LongtakeError(f"{said}; {_advice(maker, worker, step, self.saved_step)}")
        worker.optimizer.step()
        worker.optimizer.zero_grad(set_to_none=True)
        if worker.average:
            worker.average.update()
        if liveness:
            liveness.after_step(named)
        self.step += 1
        return loss

    def _save_or_stop(self, stop: StopRequest) -> bool:
        """Save where it is time, and return whether to end; all processes agree on both."""
        minutes = self.worker.spec.save_minutes
        overdue = minutes > 0 and time.monotonic() - self.saved_time >= 60 * minutes
        requested, overdue = self.worker.any_process(stop.requested, overdue)
        stop.requested |= requested
        if overdue or self.step % self.worker.spec.save_every == 0:
            self.save()
        return requested

    def save(self) -> None:
        """Write checkpoint-<step> where it is not there yet, and keep the newest `train.keep`."""
        if self.step == self.saved_step:
            return
        worker = self.worker
        optimizer = full_tree(worker.optimizer.optimizer.state_dict())  # of all processes
        average = worker.average.full() if worker.average else None
        passed = self.liveness is None or self.liveness.passed
        state = {"step": self.step, **self.logger.state_dict(), "live": passed}
        state["precision"] = worker.spec.precision  # kept on resume, on any machine
        state["threads"] = torch.get_num_threads()  # sums on a CPU follow them
        with self._checkpoint_folder() as folder:
            with worker.averaged(), full_weights(worker.stage, here=worker.writes):
                if folder:
                    save_model(folder, worker.model)
            if folder:  # the weights as they train, again
                write_state(folder, optimizer, average, state)
        if worker.writes:
            prune(worker.run, worker.spec.keep)
        worker.accelerator.wait_for_everyone()
        self.saved_step, self.saved_time = self.step, time.monotonic()

    def _checkpoint_folder(self) -> AbstractContextManager[Path | None]:
        """Return the folder to fill, or None in processes that do not write."""
        folder = whole_folder(self.worker.run / f"checkpoint-{self.step}")
        return folder if self.worker.writes else nullcontext()


def _same(batch: Any) -> Any:  # the batch is collated already
    return batch


def forward_backward(worker: TrainWorker, batch: Batch, step: int, saved_step: int = -1) -> float:
    """Leave the gradient of a step's loss on the weights, and return that loss.

    Both are means over all samples of the step: micro-batches and processes have equal shares.
    `saved_step` is that of the newest checkpoint, for advice; −1: there is none.

    Raises:
        LongtakeError: the loss is not finite; all processes raise it, with the clips' names.
    """
    count = worker.spec.accumulate
    parts = batch.deal(count) if count > 1 else [batch]
    losses, logs = [], []
    for k, part in enumerate(parts):
        with _no_sync(worker, last=k == count - 1):
            loss = worker.wrapped(part.to(worker.device), step)
            worker.accelerator.backward(loss / count if count > 1 else loss)
        losses.append(loss.detach())
        logs.append(worker.stage.finite)
    gathered = worker.gather(torch.stack(losses))
    if not bool(torch.isfinite(gathered).all()):  # all processes see the same, and raise together
        bad = [k for k, loss in enumerate(losses) if not torch.isfinite(loss)]
        names = worker.gather_names([name for k in bad for name in parts[k].names])
        makers = worker.gather_names([_label(logs[k].first_bad() or "the loss") for k in bad])
        value = next(float(loss) for loss in gathered if not torch.isfinite(loss))
        said = _not_finite("loss", value, step, names)
        raise LongtakeError(f"{said}; {_advice(makers[0], worker, step, saved_step)}")
    return float(gathered.mean())


def _no_sync(worker: TrainWorker, *, last: bool) -> AbstractContextManager[None]:
    """Sum gradients within the process; with the last micro-batch, over all of them."""
    if last:
        return nullcontext()
    context: AbstractContextManager[None] = worker.accelerator.no_sync(worker.wrapped)
    return context


def _not_finite(what: str, value: float, step: int, names: list[str]) -> str:
    return f"the {what} is {value} at step {step}, on clips {', '.join(names)}"


def _label(maker: object) -> str:
    return maker if isinstance(maker, str) else plugin_label(maker)


def _gradient_maker(worker: TrainWorker, batch: Batch, step: int) -> str:
    """Return whose backward pass first gives no numbers; all processes must ask.

    Clipping has spoilt all gradients alike, so that they are worked out again. What comes later
    in the forward pass comes first in the backward one: the backbone before the compressors.
    """
    worker.optimizer.zero_grad(set_to_none=True)
    forward_backward(worker, batch, step)
    encoder, backbone = worker.stage.encoder, worker.stage.backbone
    for module in (backbone, *encoder.members):
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        finite = [bool(torch.isfinite(full_tensor(gradient)).all()) for gradient in gradients]
        if not all(finite):
            return f"the backward pass of {plugin_label(module)}"
    return "the backward pass"


def _advice(maker: str, worker: TrainWorker, step: int, saved_step: int) -> str:
    """Return who made what is not finite, and what can be done about it at this step."""
    said = f"{maker} gives it first"
    if maker == DATA:
        return f"{said}: cache those clips again, or leave them out"
    if step == 0:
        precision = " in train.precision=fp32," if worker.spec.precision != "fp32" else ""
        return (
            f"{said}, and nothing has trained yet, so that no rate is to blame: try it"
            f"{precision} without those clips, or mend {maker}"
        )
    if saved_step < 0:
        return f"{said}; no checkpoint is saved yet: start again with a lower train.rate"
    if saved_step == step:
        return (
            f"{said}, from the weights of checkpoint-{saved_step} as they are: leave those clips "
            "out, or go on from an earlier checkpoint with a lower train.rate"
        )
    return (
        f"{said}; checkpoint-{saved_step} is whole: lower train.rate, or leave those clips out, "
        "and --resume latest"
    )


@define
class StopRequest:
    """Whether the run was asked to end."""

    requested: bool = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Yield what the first Ctrl-C or SIGTERM sets: the run ends after its step, saved.

    At the second one, KeyboardInterrupt is raised at once. Outside the main thread, where Python
    hears no signals, nobody sets it.
    """
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
