"""Worker: one process of a run, and what it asks of the others."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from attrs import define
from torch import Tensor

from ..experiment import Experiment, TrainSpec
from ..model import Model
from .ema import Average
from .loss import StageOne


@define
class Worker:
    """One process of a run: the model, what steps it, and its place among the processes.

    Attributes:
        stage: φ and G under their loss, as the model names them.
        wrapped: the stage as Accelerate prepared it; only its forward sees the other processes.
        average: of all that trains, or None where `train.ema` is 0.
    """

    experiment: Experiment
    run: Path
    model: Model
    stage: StageOne
    wrapped: Any
    optimizer: Any
    accelerator: Any
    average: Average | None = None

    @property
    def spec(self) -> TrainSpec:
        """How to train."""
        return self.experiment.train

    @property
    def device(self) -> torch.device:
        """Where this process works."""
        found: torch.device = self.accelerator.device
        return found

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files."""
        return bool(self.accelerator.is_main_process)

    def shown(self) -> AbstractContextManager[None]:
        """Put the weights that users read in place for a while."""
        return self.average.shown() if self.average else nullcontext()

    def gather(self, values: Tensor) -> Tensor:
        """Return the values `[N]` of all processes, one behind the other."""
        found: Tensor = self.accelerator.gather(values)
        return found

    def gather_names(self, names: Sequence[str]) -> list[str]:
        """Return the names of all processes; all must ask."""
        if self.accelerator.num_processes == 1:
            return list(names)
        from accelerate.utils import gather_object

        found: list[str] = gather_object(list(names))
        return found

    def any(self, *flags: bool) -> list[bool]:
        """Say of each flag whether some process raised it, so that all do the same."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        raised = torch.tensor([flags], dtype=torch.int64, device=self.device)
        return [bool(n) for n in self.gather(raised).sum(dim=0)]


# ⟦core/train/signals.py⟧ Signals: the first Ctrl-C ends a run after its step, saved; the second one ends it at once.


@define
class Stop:
    """Whether the run was asked to end."""

    asked: bool = False


@contextmanager
def graceful() -> Iterator[Stop]:
    """Yield what Ctrl-C and SIGTERM set; at the second one, KeyboardInterrupt is raised.

    Outside the main thread, where Python hears no signals, nobody sets it.
    """
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {n: signal.signal(n, ask) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
