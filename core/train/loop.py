"""The training loop: steps, logs, checkpoints, and an end that keeps what is done."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from attrs import define, field
from torch import Tensor
from torch.utils.data import DataLoader

from ..data.batch import Batch
from ..data.windows import WindowBatches
from ..draws import Draws
from ..errors import LongtakeError, UserError
from ..experiment import Experiment, TrainSpec
from ..model import Model
from .checkpoint import save_checkpoint
from .gain import memory_gain
from .liveness import Liveness, memory_parameters
from .log import RunLog
from .optim import learning_rate
from .preview import preview
from .stage import StageOne

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
    """One process of a run."""

    experiment: Experiment
    run: Path
    model: Model
    stage: StageOne
    wrapped: Any
    optimizer: Any
    accelerator: Any
    batches: WindowBatches
    log: RunLog | None
    liveness: Liveness | None
    step: int
    losses: list[float] = field(factory=list)
    loss: float | None = None
    gain: float | None = None
    clock: float = 0.0
    stop: bool = False

    @property
    def spec(self) -> TrainSpec:
        """How to train."""
        return self.experiment.train

    def go(self, progress: Progress | None) -> TrainResult:
        """Train to the end, or to the next Ctrl-C, which saves first."""
        self.clock = time.monotonic()
        with _graceful(self):
            for batch in self._batches():
                loss = self._train_step(batch.to(self.accelerator.device))
                self.step += 1
                self._after(batch, loss)
                if progress:
                    progress(self.step, self.spec.steps, f"loss {loss:.4f}")
                if self.stop:
                    break
        return self._finish()

    def _loader(self) -> DataLoader[Batch]:
        rest = range(self.step, self.spec.steps)
        return DataLoader(self.batches, batch_size=None, sampler=list(rest), collate_fn=_same)

    def _batches(self) -> Iterator[Batch]:
        try:
            yield from self._loader()
        except UserError:  # the store is gone or damaged: keep what is done, then say so
            if self.loss is not None:
                self._save()
            raise

    def _train_step(self, batch: Batch) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.spec, self.step)
        loss = self.wrapped(batch, self.step)
        self._check(loss, batch)
        self.accelerator.backward(loss)
        named = memory_parameters(self.stage)
        watch = None if self.stage.drops_memory(self.step) else self.liveness
        if watch:
            watch.after_backward(named)
        trained = [p for p in self.stage.parameters() if p.requires_grad]
        self.accelerator.clip_grad_norm_(trained, self.spec.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if watch:
            watch.after_step(named)
        return float(self.accelerator.gather(loss.detach()[None]).mean())

    def _check(self, loss: Tensor, batch: Batch) -> None:
        if not torch.isfinite(loss):
            raise LongtakeError(
                f"the loss is {float(loss.detach())} at step {self.step}, on clips "
                f"{', '.join(batch.names)}; the last checkpoint is whole: lower train.rate, "
                "or leave those clips out, and --resume latest"
            )

    def _after(self, batch: Batch, loss: float) -> None:
        self.losses.append(loss)
        self.loss = loss
        last = self.step >= self.spec.steps
        if self.step % self.spec.gain_every == 0 or last:
            self._measure_gain(batch.to(self.accelerator.device))
        if self.step % self.spec.log_every == 0 or last:
            self._log_scalars()
        if self.step % self.spec.save_every == 0 and not last:
            self._save()

    def _log_scalars(self) -> None:
        now = time.monotonic()
        seconds = (now - self.clock) / max(1, len(self.losses))
        values = {
            "loss": sum(self.losses) / len(self.losses),
            "learning_rate": learning_rate(self.spec, self.step - 1),
            "seconds_a_step": seconds,
        }
        if self.log:
            self.log.scalars(self.step, values)
        self.losses, self.clock = [], now

    @torch.no_grad()
    def _measure_gain(self, batch: Batch) -> None:
        if batch.history.batch < 2 or not self.log or not self.experiment.remembers:
            return
        draws = Draws.of(self.spec.seed, self.step, batch.places, "gain")
        query = self.stage.masker(batch.history, batch.text, draws)
        with self.accelerator.autocast():
            gain = memory_gain(self.stage, query, self.stage.draw(query, draws))
        self.gain = float(gain.gain.mean())
        values = {"memory_gain": self.gain, "memory_specific": float(gain.specific.mean())}
        self.log.scalars(self.step, values)
        self._picture(batch)

    def _picture(self, batch: Batch) -> None:
        if self.log:
            image = preview(self.model, batch, self.stage.null_text, seed=self.spec.seed)
            self.log.picture(self.step, "retrieved below original", image)

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.run, self.step, self.model, self.optimizer.optimizer, keep=self.spec.keep
            )
        self.accelerator.wait_for_everyone()

    def _finish(self) -> TrainResult:
        self._save()
        if self.log:
            self.log.close()
        return TrainResult(self.run, self.step, self.loss, self.gain, self.stop)


def _same(batch: Any) -> Any:  # the batch is collated already
    return batch


@contextmanager
def _graceful(trainer: Trainer) -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the run after its step; a second one ends it at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if trainer.stop:
            raise KeyboardInterrupt
        trainer.stop = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
