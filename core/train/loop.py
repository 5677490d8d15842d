"""The training loop: steps, what is written after them, and an end that keeps what is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import define
from torch.utils.data import DataLoader

from ..data.batch import Batch
from ..data.windows import WindowBatches
from ..errors import UserError
from .diary import Diary
from .saver import Saver
from .signals import Stop, graceful
from .step import Stepper
from .worker import Worker

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
