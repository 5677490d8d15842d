"""Several processes over the videos of one `cache`: they write clips, the parent indexes them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from attrs import define, field, frozen

from .. import config as edge
from ..errors import LongtakeError
from ..experiment import Experiment
from ..tools.files import remove_parts
from ..values.grid import Rate
from .job import Job
from .tasks import Done, Outcome, Task, perform

# ⟦core/data/orders.py⟧ A worker of `cache`: builds its job from plain orders and does tasks out of a pipe.


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
        """Return the orders that make the same job."""
        return cls(
            experiment=edge.to_json(job.experiment),
            root=str(job.root),
            rates=tuple(map(str, job.rates)),
            pixels=job.spec.pixels,
            device=str(job.device),
        )

    def job(self, number: int) -> Job:
        """Return the job of worker `number`: one thread on a CPU, the GPUs in turn."""
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


Starts = Callable[[Task], None]


@define
class Worker:
    """A process, the pipe to it, and what it is at work on."""

    number: int
    process: BaseProcess
    pipe: Connection
    task: Task | None = None


def run_workers(
    job: Job, tasks: Sequence[Task], count: int, starts: Starts
) -> Generator[Done, None, None]:
    """Yield what became of the tasks, as they are done, by `count` processes.

    A worker that is killed costs the task that it was at (`lost`); another takes its place, but
    none that of one which dies before its first task. All end with the iteration, however it ends.

    Raises:
        UserError: the disk refuses.
        LongtakeError: no worker can start.
    """
    pool = Pool(Orders.of(job), list(reversed(tasks)), starts)
    try:
        for number in range(min(count, len(tasks))):
            pool.start(number)
        while pool.workers:
            yield from pool.finished()
        pool.check()
    finally:
        pool.stop()
        remove_parts(job.root / "clips")


@define
class Pool:
    """The workers, and the tasks that wait for them, last first."""

    orders: Orders
    waiting: list[Task]
    starts: Starts
    workers: list[Worker] = field(factory=list)
    failure: str = ""

    def start(self, number: int) -> None:
        """Start a worker; it says when it is ready."""
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=work, args=(self.orders, number, there), daemon=True)
        with _deaf_children():
            process.start()
        there.close()
        self.workers.append(Worker(number, process, here))

    def finished(self) -> Iterator[Done]:
        """Wait for the next news; give what was done, and give out more tasks."""
        pipes: dict[Any, Worker] = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(pipes)):
            done = _heard(pipes[pipe])
            if done is not None:
                yield done
            self._go_on(pipes[pipe], began=done is not None)

    def _go_on(self, worker: Worker, *, began: bool) -> None:
        lives = worker.process.exitcode is None
        if lives and self.waiting:
            _give(worker, self.waiting.pop(), self.starts)
            return
        self.workers.remove(worker)
        if lives:
            _end(worker)
            return
        self.failure = _end_of(worker)
        if began and self.waiting:
            self.start(worker.number)

    def check(self) -> None:
        """Raise where tasks are left that no worker is there for."""
        if self.waiting:
            raise LongtakeError(f"no worker of `longtake cache` could start: one {self.failure}")

    def stop(self) -> None:
        """End all workers at once."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            _end(worker)


def _heard(worker: Worker) -> Done | None:
    """Return what a worker did, None where it has just started, or died before any task."""
    task, worker.task = worker.task, None
    try:
        told = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        return None if task is None else _lost(worker, task)
    if isinstance(told, LongtakeError):
        raise told
    return None if told == READY else told


def _lost(worker: Worker, task: Task) -> Done:
    name = task.source.name
    detail = f"{name}: the process at work on it {_end_of(worker)}; run the same command again"
    outcome = Outcome(source=name, status="lost", detail=detail)
    return Done(id=task.source.id, outcome=outcome)


def _end_of(worker: Worker) -> str:
    code = worker.process.exitcode or 0
    return f"was killed (signal {-code})" if code < 0 else f"failed (exit code {code})"


def _give(worker: Worker, task: Task, starts: Starts) -> None:
    starts(task)
    worker.task = task
    try:
        worker.pipe.send(task)
    except ConnectionError:
        pass  # it has died: reading from it says so


def _end(worker: Worker) -> None:
    worker.pipe.close()
    worker.process.join()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Let processes that start now ignore Ctrl-C: the parent ends them in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
