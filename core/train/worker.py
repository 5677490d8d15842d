"""One process of a run, and what it asks of the others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from attrs import define
from torch import Tensor

from ..experiment import Experiment, TrainSpec
from ..model import Model
from .ema import EMA
from .loss import Stage


@define
class TrainWorker:
    """One process of a run: the model, what steps it, and its place among the processes.

    Attributes:
        run: the run's folder.
        stage: φ and G under their loss, as the model names them.
        wrapped: the stage as Accelerate prepared it; only its forward sees the other processes.
        average: of all that trains, or None where `train.ema` is 0.
    """

    experiment: Experiment
    run: Path
    model: Model
    stage: Stage
    wrapped: Any
    optimizer: Any
    accelerator: Any
    average: EMA | None = None

    @property
    def spec(self) -> TrainSpec:
        """How to train."""
        return self.experiment.train

    @property
    def device(self) -> torch.device:
        """Where this process works."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def writes(self) -> bool:
        """Whether this is the process that writes files."""
        return bool(self.accelerator.is_main_process)

    def averaged(self) -> AbstractContextManager[None]:
        """Put the weights that users get in place for a while: the average, where there is one."""
        return self.average.applied() if self.average else nullcontext()

    def gather(self, values: Tensor) -> Tensor:
        """Return the values `[N]` of all processes, one behind the other."""
        values = self.accelerator.gather(values)
        return values

    def gather_names(self, names: Sequence[str]) -> list[str]:
        """Return the names of all processes; all must ask."""
        if self.accelerator.num_processes == 1:
            return list(names)
        from accelerate.utils import gather_object

        gathered: list[str] = gather_object(list(names))
        return gathered

    def any_process(self, *flags: bool) -> list[bool]:
        """Return of each flag whether some process raised it, so that all do the same."""
        if self.accelerator.num_processes == 1:
            return list(flags)
        raised = torch.tensor([flags], dtype=torch.int64, device=self.device)
        return [bool(n) for n in self.gather(raised).sum(dim=0)]
