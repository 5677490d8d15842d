"""The `cache` verb: videos into a latent store; resumable, and bad files are listed, not fatal."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import torch
from attrs import define, field

from ..data.sources import Source, find_sources
from ..data.store import Record, clip_path, rate_path, read_index
from ..data.texts import Texts
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.spec import TextEncoderSpec
from ..interfaces.text_encoder import TextEncoder
from ..registry import build
from ..tools.files import append_line
from ..values.grid import Rate
from .job import Job, Room, Share, claimed, note_margins
from .tasks import Done, Outcome, Task, captions_of, clip_ids, needs_cuts, perform, plan, with_cuts
from .workers import Starts, run_workers

# ⟦core/data/cache_run.py⟧ A run of `cache` in one process: plans its videos, has them done, indexes what is finished.


Progress = Callable[[int, int, str], None]


@define
class Run:
    """The only writer of its index file; the texts of all workers are embedded here."""

    job: Job
    texts: Texts
    index: Path
    done: dict[str, Record] = field(repr=False)
    progress: Progress | None
    room: Room
    outcomes: dict[str, Outcome] = field(factory=dict, repr=False)
    total: int = 0
    began: float = field(factory=time.monotonic)
    elapsed: float = 0.0

    @classmethod
    def of(cls, job: Job, texts: Texts, index: Path, progress: Progress | None) -> Run:
        """Begin; new clips get the rates that others have, too, so that the store stays even."""
        done = {record.id: record for record in read_index(job.root)}
        every = {rate for record in done.values() for rate in (*record.rates, *record.added)}
        job.rates |= frozenset(map(Rate.parse, every))
        return cls(job, texts, index, done, progress, Room(job.root))

    def prepare(self, sources: Sequence[Source], workers: int) -> list[Task]:
        """Return what is to be done for these videos, all prompts of it embedded.

        That is before the codec is first used: text encoder and codec are never loaded together.

        Raises:
            UserError: the disk refuses, or the text encoder's weights are not there.
        """
        self.total = len(sources)
        tasks = [task for source in sources if (task := self._plan(source))]
        tasks = list(self._with_cuts(tasks, workers))
        self._report("prompts")
        self.texts.ensure(["", *(prompt for task in tasks for prompt in _prompts(task))])
        return tasks

    def every(
        self, sources: Sequence[Source], tasks: Sequence[Task], workers: int
    ) -> list[Outcome]:
        """Do the tasks of these videos, and give what became of each video.

        Raises:
            UserError: the disk refuses.
            LongtakeError: a worker cannot start.
        """
        self.began = time.monotonic()
        with closing(self._run(tasks, workers)) as run:
            for done in run:
                self._keep(done)
        self._report("")
        return [self.outcomes[source.id] for source in sources]

    def gone(self, sources: Sequence[Source]) -> list[str]:
        """Return the videos that the store has clips of and that are not among the sources."""
        there = {i for source in sources for i in clip_ids(source, mirror=True)}
        return sorted({record.source for i, record in self.done.items() if i not in there})

    def _plan(self, source: Source) -> Task | None:
        try:
            task = plan(self.job, source, self.done)
            status, detail = "kept", ""
        except UserError as error:
            task, status, detail = None, "bad", str(error)
        if task is None:
            self.outcomes[source.id] = Outcome(source=source.name, status=status, detail=detail)
        return task

    def _with_cuts(self, tasks: Sequence[Task], workers: int) -> Iterator[Task]:
        """Look for the cuts that prompts depend on; told by a count of their own."""
        done, total = 0, sum(map(needs_cuts, tasks))
        self._tell(done, total, "looking for cuts")
        with ThreadPoolExecutor(workers) as pool:
            for task, found in zip(tasks, pool.map(with_cuts, tasks), strict=True):
                if needs_cuts(task):
                    done += 1
                    self._tell(done, total, f"cuts of {task.source.name}")
                yield found

    def _tell(self, done: int, total: int, note: str) -> None:
        if self.progress and total:
            self.progress(done, total, note)

    def _run(self, tasks: Sequence[Task], workers: int) -> Generator[Done, None, None]:
        def starts(task: Task) -> None:
            self._report(task.source.name)

        if min(workers, len(tasks)) > 1:
            return run_workers(self.job, tasks, workers, starts)
        return _one_by_one(self.job, tasks, starts)

    def _keep(self, done: Done) -> None:
        """Index the clips of a video: from here on a later run keeps them."""
        captions = (caption for record in done.records for caption in record.captions)
        self.texts.ensure(caption.text for caption in captions)
        for record in done.records:
            append_line(self.index, record.line())
            self._drop_stale(record)
            self.done[record.id] = record
        self.outcomes[done.id] = done.outcome
        if done.outcome.status == "cached":
            self.room.add(clip_path(self.job.root, record.id) for record in done.records)
        self.elapsed = time.monotonic() - self.began

    def _drop_stale(self, new: Record) -> None:
        old = self.done.get(new.id)
        for rate in set(old.added if old else ()) - set(new.added):
            rate_path(self.job.root, rate, new.id).unlink(missing_ok=True)

    def _report(self, name: str) -> None:
        if self.progress:
            seconds = sum(outcome.seconds for outcome in self.outcomes.values())
            video = f"{seconds:.0f} s of video" if seconds else ""
            lacking = self.room.lacking(self.total - len(self.outcomes))
            note = ", ".join(filter(None, (video, lacking, name)))
            self.progress(len(self.outcomes), self.total, note)


def _prompts(task: Task) -> list[str]:
    """Return the prompts of a task; none where its video cannot be read."""
    if task.found is None and task.cuts and not task.source.captions:
        return []
    cuts = task.old[0].cuts if task.found is None and task.old else task.found
    return [caption.text for caption in captions_of(task.source, cuts)]


def _one_by_one(job: Job, tasks: Sequence[Task], starts: Starts) -> Generator[Done, None, None]:
    for task in tasks:
        starts(task)
        yield perform(job, task)


@define
class CacheResult:
    """What a run of `cache` did.

    Attributes:
        store: its folder.
        outcomes: one a video of this process's share.
        share: which share that was.
        gone: sources that the store has and that are no longer among the videos; they stay.
        elapsed: seconds that reading and encoding took.
    """

    store: Path
    outcomes: list[Outcome] = field(factory=list)
    share: Share = Share()
    gone: list[str] = field(factory=list)
    elapsed: float = 0.0

    def count(self, status: str) -> int:
        """Return how many videos have that status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        """Seconds of video that were cached."""
        return sum(outcome.seconds for outcome in self.outcomes)


def cache(
    experiment: Experiment,
    videos: Path,
    out: Path,
    *,
    rates: frozenset[Rate],
    pixels: bool,
    device: torch.device,
    progress: Progress | None = None,
    share: Share | None = None,
    workers: int = 1,
) -> CacheResult:
    """Cache every video of a folder into a store and give what became of each.

    What is already in the store, from an unchanged video, is kept; new captions, cuts or rates
    are added to it without touching its latents. A video that cannot be used is listed with its
    reason; the store is whole after every clip. Several processes may cache into one store.

    Args:
        experiment: its backbone implies codec, text encoder and frame rate.
        videos: a folder, a list or one file.
        out: the store's folder, made where missing.
        rates: LR rates that plugins need; those of `cache.rates` and of the store are added.
        pixels: whether a plugin needs the frames themselves.
        device: where the text encoder runs, and after it the codec.
        progress: called with done, total, and the seconds cached and the name of a video; where
            captions depend on cuts, first with how many videos were searched for them.
        share: the part of the videos that this process takes; default: all.
        workers: processes that this one spreads its share over.

    Raises:
        UserError: no video is usable, the store belongs to another spec, or the disk is full.
        LongtakeError: a worker cannot start.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: 1 or more")
    sources, mine = find_sources(videos), share or Share()
    job = Job.of(experiment, out, rates, pixels, device)
    text: TextEncoder[TextEncoderSpec] = build(experiment.backbone.text_encoder).to(device)
    with claimed(job, text, mine) as index:
        run = Run.of(job, Texts(out, text), index, progress)
        own = mine.of(sources)
        tasks = run.prepare(own, workers)
        note_margins(job)
        outcomes = run.every(own, tasks, workers)
        gone = run.gone(sources)
    result = CacheResult(out, outcomes, mine, gone, run.elapsed)
    _refuse_none(result, videos, len(sources))
    return result


def _refuse_none(result: CacheResult, videos: Path, total: int) -> None:
    """Refuse videos of which none is of use; a share may have bad luck."""
    if result.share.world == 1 and result.count("bad") == total:
        raise UserError(
            f"none of the {total} videos in {videos} could be used; the first: "
            f"{result.outcomes[0].detail}"
        )
