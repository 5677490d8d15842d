"""The training loop: steps, what is written after them, and an end that keeps what is done."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import Tensor
from torch.nn import Parameter
from torch.utils.data import DataLoader

from ..data.windows import Batch, WindowBatches
from ..errors import LongtakeError, UserError
from ..tools.files import disk_errors, whole_folder
from .checkpoint import checkpoints, save_model, write_state
from .distributed import whole, whole_tree, whole_weights
from .ema import trained
from .liveness import Liveness, memory_parameters
from .log import Diary
from .optim import learning_rate
from .worker import Stop, Worker, graceful

# ⟦core/train/saver.py⟧ When a run saves, and what: checkpoints written whole or not at all.


@define
class Saver:
    """Saves a worker's run.

    Attributes:
        saved: step of the newest checkpoint; a step is never saved twice.
        clock: when that was, by `time.monotonic`.
    """

    worker: Worker
    saved: int
    clock: float = 0.0

    def begin(self) -> None:
        """Count the minutes from now."""
        self.clock = time.monotonic()

    def overdue(self) -> bool:
        """Whether `save_minutes` have passed since the last checkpoint."""
        minutes = self.worker.spec.save_minutes
        return minutes > 0 and time.monotonic() - self.clock >= 60 * minutes

    def save(self, step: int, notes: Mapping[str, Any]) -> None:
        """Write checkpoint-<step> where it is not there yet, and keep the newest `train.keep`.

        Args:
            step: how many have been trained.
            notes: plain data for state.json, which holds the step besides.
        """
        if step == self.saved:
            return
        worker = self.worker
        state = whole_tree(worker.optimizer.optimizer.state_dict())  # of all processes
        average = worker.average.whole() if worker.average else None
        with self._place(step) as part:
            with worker.shown(), whole_weights(worker.stage, here=worker.writes):
                if part:
                    save_model(part, worker.model)
            if part:  # the weights as they train, again
                write_state(part, state, average, {"step": step, **notes})
        if worker.writes:
            prune(worker.run, worker.spec.keep)
        worker.accelerator.wait_for_everyone()
        self.saved = step
        self.begin()

    def _place(self, step: int) -> AbstractContextManager[Path | None]:
        """Return the folder to fill, or None in processes that do not write."""
        worker = self.worker
        found = whole_folder(worker.run / f"checkpoint-{step}")
        return found if worker.writes else nullcontext()


def prune(run: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints; none is ever seen half deleted."""
    for old in checkpoints(run)[:-keep]:
        part = old.with_name(f".{old.name}.{os.getpid()}.part")
        with disk_errors(old):
            shutil.rmtree(part, ignore_errors=True)
            os.replace(old, part)
            shutil.rmtree(part)


# ⟦core/train/step.py⟧ One optimizer step, over micro-batches and over all processes.


@define
class Stepper:
    """Trains a worker's model, a step at a time; `liveness` watches the first steps of a run."""

    worker: Worker
    liveness: Liveness | None
    weights: list[Parameter] = field(factory=list, repr=False)

    def __attrs_post_init__(self) -> None:
        self.weights = list(trained(self.worker.stage).values())

    @property
    def lived(self) -> bool:
        """Whether memory was found alive, or is not watched."""
        return self.liveness is None or self.liveness.passed

    def step(self, batch: Batch, step: int) -> float:
        """Train one step on this process's share of a batch and give the loss over all of it.

        Raises:
            LongtakeError: the loss or the gradient is not finite; the weights are as they were.
            DeadMemory: some parameters of the memory do not train.
        """
        worker = self.worker
        for group in worker.optimizer.param_groups:
            group["lr"] = learning_rate(worker.spec, step)
        loss = gradients(worker, batch, step)
        named = memory_parameters(worker.stage)
        watch = None if worker.stage.drops_memory(step) else self.liveness
        if watch:
            watch.after_backward(named)
        norm = whole(worker.accelerator.clip_grad_norm_(self.weights, worker.spec.clip))
        if not bool(torch.isfinite(norm)):
            names = worker.gather_names(batch.names)  # the norm is one for all processes
            raise LongtakeError(_sick("gradient", float(norm), step, names))
        worker.optimizer.step()
        worker.optimizer.zero_grad(set_to_none=True)
        if worker.average:
            worker.average.update()
        if watch:
            watch.after_step(named)
        return loss


def gradients(worker: Worker, batch: Batch, step: int) -> float:
    """Leave the gradient of a step's loss on the weights, and give that loss.

    Both are means over all samples of the step: micro-batches and processes have equal shares.

    Raises:
        LongtakeError: the loss is not finite; all processes raise it, with the clips' names.
    """
    count = worker.spec.accumulate
    parts = batch.deal(count) if count > 1 else [batch]
    losses = []
    for k, part in enumerate(parts):
        with _apart(worker, last=k == count - 1):
            loss = worker.wrapped(part.to(worker.device), step)
            worker.accelerator.backward(loss / count if count > 1 else loss)
        losses.append(loss.detach())
    every = worker.gather(torch.stack(losses))
    _check(worker, every, losses, parts, step)
    return float(every.mean())


def _apart(worker: Worker, *, last: bool) -> AbstractContextManager[None]:
    """Sum gradients within the process; with the last micro-batch, over all of them."""
    if last:
        return nullcontext()
    apart: AbstractContextManager[None] = worker.accelerator.no_sync(worker.wrapped)
    return apart


def _check(
    worker: Worker, every: Tensor, mine: list[Tensor], parts: list[Batch], step: int
) -> None:
    if bool(torch.isfinite(every).all()):  # all processes see the same losses: they part nowhere
        return
    sick = [part for part, loss in zip(parts, mine, strict=True) if not torch.isfinite(loss)]
    names = worker.gather_names([name for part in sick for name in part.names])
    value = next(float(loss) for loss in every if not torch.isfinite(loss))
    raise LongtakeError(_sick("loss", value, step, names))


def _sick(what: str, value: float, step: int, names: list[str]) -> str:
    return (
        f"the {what} is {value} at step {step}, on clips {', '.join(names)}; the last checkpoint "
        "is whole: lower train.rate, or leave those clips out, and --resume latest"
    )


Progress = Callable[[int, int, str], None]


@define
class TrainResult:
    """What a run of `pretrain` ended with."""

    run: Path
    step: int
    loss: float | None
    gain: float | None
    stopped: bool


@define
class Trainer:
    """One process of a run, from a step to the last one."""

    worker: Worker
    batches: WindowBatches
    stepper: Stepper
    diary: Diary
    saver: Saver
    step: int

    def go(self, progress: Progress | None) -> TrainResult:
        """Train to the end, or to the next Ctrl-C, which saves first."""
        self.diary.begin()
        self.saver.begin()
        with graceful() as stop:
            for batch in self._batches():
                loss = self.stepper.step(batch, self.step)
                self.step += 1
                self.diary.after(self.step, batch, loss)
                if progress:
                    progress(self.step, self.worker.spec.steps, f"loss {loss:.4f}")
                if self._pause(stop):
                    break
            self._save()
        return self.end(stopped=stop.asked and self.step < self.worker.spec.steps)

    def end(self, *, stopped: bool = False) -> TrainResult:
        """Close the logs and give what the run came to."""
        self.diary.close()
        diary = self.diary
        return TrainResult(self.worker.run, self.step, diary.loss, diary.gain, stopped)

    def _batches(self) -> Iterator[Batch]:
        rest = list(range(self.step, self.worker.spec.steps))
        begun = self.step
        try:
            yield from DataLoader(self.batches, batch_size=None, sampler=rest, collate_fn=_same)
        except UserError:  # the store is gone or damaged: keep what is done, then say so
            alone = self.worker.accelerator.num_processes == 1  # others may not have met it
            if alone and self.step > begun:
                self._save()
            raise

    def _pause(self, stop: Stop) -> bool:
        """Save where it is time, and say whether to end; all processes agree on both."""
        asked, overdue = self.worker.any(stop.asked, self.saver.overdue())
        stop.asked |= asked
        if overdue or self.step % self.worker.spec.save_every == 0:
            self._save()
        return asked

    def _save(self) -> None:
        self.saver.save(self.step, self.diary.notes() | {"live": self.stepper.lived})


def _same(batch: Any) -> Any:  # the batch is collated already
    return batch
