"""When a run saves, and what: checkpoints written whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from attrs import define

from ..files import disk_errors, whole_folder
from .checkpoint import checkpoints, save_model
from .parts import whole_tree
from .sharded import whole_weights
from .state import write_state
from .worker import Worker


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
        """Give the folder to fill, or None in processes that do not write."""
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
