"""A worker of `cache`: builds its job from plain orders and does tasks out of a pipe."""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from .. import edge
from ..errors import LongtakeError
from ..experiment import Experiment
from ..grid import Rate
from .claim import Job
from .perform import perform
from .work import Done

READY = "ready"


@frozen(kw_only=True)
class Orders:
    """What a worker builds its job from: plain values, so that any experiment can be sent."""

    experiment: dict[str, Any]
    root: str
    rates: tuple[str, ...]
    pixels: bool
    device: str

    @classmethod
    def of(cls, job: Job) -> Orders:
        """Give the orders that make the same job."""
        return cls(
            experiment=edge.to_json(job.experiment),
            root=str(job.root),
            rates=tuple(map(str, job.rates)),
            pixels=job.spec.pixels,
            device=str(job.device),
        )

    def job(self, number: int) -> Job:
        """Give the job of worker `number`: one thread on a CPU, the GPUs in turn."""
        experiment = edge.from_json(self.experiment, Experiment)
        device = torch.device(self.device)
        if device.type == "cpu":
            torch.set_num_threads(1)
        elif device.type == "cuda" and device.index is None:
            device = torch.device("cuda", number % torch.cuda.device_count())
        rates = frozenset(map(Rate.parse, self.rates))
        return Job.of(experiment, Path(self.root), rates, self.pixels, device)


def work(orders: Orders, number: int, pipe: Connection) -> None:
    """Do the tasks that come through the pipe, until it closes."""
    job = orders.job(number)
    told: str | Done | LongtakeError = READY
    while True:
        try:
            pipe.send(told)
            task = pipe.recv()
        except (EOFError, ConnectionError):  # the parent is done, or dead
            return
        try:
            told = perform(job, task)
        except LongtakeError as error:
            told = error
