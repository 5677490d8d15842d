"""Several processes over the videos of one `cache`: they write clips, the parent indexes them.

A worker builds its job from plain values (`JobDescription`) and performs the tasks that come
through its pipe.
"""

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

from .. import config
from ..errors import LongtakeError
from ..experiment import Experiment
from ..tools.files import remove_parts
from ..values.grid import Rate
from .job import Job
from .tasks import Outcome, Task, TaskResult, perform

READY = "ready"  # what a worker sends before its first task

TaskStarts = Callable[[Task], None]


def run_workers(
    job: Job, tasks: Sequence[Task], count: int, starts: TaskStarts
) -> Generator[TaskResult, None, None]:
    """Perform tasks in `count` processes, and yield the results as they come.

    A worker that is killed costs the task that it was at (`lost`), and another takes its place; one
    that dies before its first task is not replaced. All end with the iteration, however it ends.

    Args:
        job: of the run.
        tasks: what is to be done, in this order.
        count: processes.
        starts: called with every task that a worker begins.

    Raises:
        UserError: the disk refuses.
        LongtakeError: no worker can start.
    """
    pool = WorkerPool(JobDescription.of(job), list(reversed(tasks)), starts)
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
class WorkerPool:
    """The workers, and the tasks that wait for them, last first.

    `failure` says how the last worker ended that ended by itself.
    """

    description: JobDescription
    waiting: list[Task]
    starts: TaskStarts
    workers: list[Worker] = field(factory=list)
    failure: str = ""

    def start(self, number: int) -> None:
        """Start a worker; it sends `READY` when it can take a task."""
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=work, args=(self.description, number, there), daemon=True)
        with _ignoring_interrupts():
            process.start()
        there.close()
        self.workers.append(Worker(number, process, here))

    def finished(self) -> Iterator[TaskResult]:
        """Wait until a worker is ready or ends; yield what was done, and hand out more tasks."""
        pipes: dict[Any, Worker] = {worker.pipe: worker for worker in self.workers}
        for pipe in wait(list(pipes)):
            result = _receive(pipes[pipe])
            if result is not None:
                yield result
            self._continue(pipes[pipe], had_task=result is not None)

    def _continue(self, worker: Worker, *, had_task: bool) -> None:
        """Hand a worker its next task; end it where none is left, replace it where it died."""
        lives = worker.process.exitcode is None
        if lives and self.waiting:
            _send(worker, self.waiting.pop(), self.starts)
            return
        self.workers.remove(worker)
        if lives:
            _close(worker)
            return
        self.failure = _reason(worker)
        if had_task and self.waiting:
            self.start(worker.number)

    def check(self) -> None:
        """Raise LongtakeError where tasks are left, but no worker is."""
        if self.waiting:
            raise LongtakeError(f"no worker of `longtake cache` could start: one {self.failure}")

    def stop(self) -> None:
        """End all workers at once."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            _close(worker)


@define
class Worker:
    """A process, the pipe to it, and what it is at work on."""

    number: int
    process: BaseProcess
    pipe: Connection
    task: Task | None = None


def _receive(worker: Worker) -> TaskResult | None:
    """Return what a worker did, None where it has just started, or died before any task."""
    task, worker.task = worker.task, None
    try:
        message = worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        return None if task is None else _lost(worker, task)
    if isinstance(message, LongtakeError):
        raise message
    return None if message == READY else message


def _lost(worker: Worker, task: Task) -> TaskResult:
    name = task.source.name
    detail = f"{name}: the process at work on it {_reason(worker)}; run the same command again"
    outcome = Outcome(source=name, status="lost", detail=detail)
    return TaskResult(id=task.source.id, outcome=outcome)


def _reason(worker: Worker) -> str:
    """Return how the process of a worker ended."""
    code = worker.process.exitcode or 0
    return f"was killed (signal {-code})" if code < 0 else f"failed (exit code {code})"


def _send(worker: Worker, task: Task, starts: TaskStarts) -> None:
    starts(task)
    worker.task = task
    try:
        worker.pipe.send(task)
    except ConnectionError:
        pass  # it has died: the next read from it says so


def _close(worker: Worker) -> None:
    worker.pipe.close()
    worker.process.join()


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Let processes that start now ignore Ctrl-C: the parent ends them in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


@frozen(kw_only=True)
class JobDescription:
    """What a worker builds its job from: plain values, so that any experiment can be sent."""

    experiment: dict[str, Any]
    root: str
    rates: tuple[str, ...]
    pixels: bool
    device: str

    @classmethod
    def of(cls, job: Job) -> JobDescription:
        """Return the description of a job."""
        return cls(
            experiment=config.to_json(job.experiment),
            root=str(job.root),
            rates=tuple(map(str, job.rates)),
            pixels=job.spec.pixels,
            device=str(job.device),
        )

    def job(self, number: int) -> Job:
        """Build the job of worker `number`: one thread on a CPU, the GPUs in turn."""
        experiment = config.from_json(self.experiment, Experiment)
        device = torch.device(self.device)
        if device.type == "cpu":
            torch.set_num_threads(1)
        elif device.type == "cuda" and device.index is None:
            device = torch.device("cuda", number % torch.cuda.device_count())
        rates = frozenset(map(Rate.parse, self.rates))
        return Job.of(experiment, Path(self.root), rates, self.pixels, device)


def work(description: JobDescription, number: int, pipe: Connection) -> None:
    """Perform the tasks that come through the pipe, until it closes."""
    job = description.job(number)
    message: str | TaskResult | LongtakeError = READY
    while True:
        try:
            pipe.send(message)
            task = pipe.recv()
        except (EOFError, ConnectionError):  # the parent is done, or dead
            return
        try:
            message = perform(job, task)
        except LongtakeError as error:
            message = error
