"""The `cache` verb: videos and filmed photographs into a latent store.

It is resumable, and bad files are listed, not fatal.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import torch
from attrs import define, field, frozen

from ..data.sources import (
    Source,
    find_films,
    find_sources,
    notes_on,
    notes_on_photos,
    photo_of,
)
from ..data.store import Record, clip_path, note_gone, rate_path, read_gone, read_index
from ..data.texts import PromptEmbedder
from ..data.variants import suffix, variants
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.spec import TextEncoderSpec
from ..interfaces.text_encoder import TextEncoder, unread_of
from ..registry import build
from ..tools.files import append_json_line, disk_errors
from ..values.grid import Rate
from .job import Job, Shard, claim_store, measure_store_margins
from .tasks import (
    Outcome,
    Task,
    TaskResult,
    captions_of,
    needs_cuts,
    perform,
    plan,
    reason,
    with_cuts,
)
from .workers import TaskStarts, run_workers

Progress = Callable[[int, int, str], None]  # done, total, note
GIGABYTE = 1e9


def cache(
    experiment: Experiment,
    videos: Path | None,
    out: Path,
    *,
    photos: Path | None = None,
    rates: frozenset[Rate],
    pixels: bool,
    device: torch.device,
    progress: Progress | None = None,
    shard: Shard | None = None,
    workers: int = 1,
    prune: bool = False,
) -> CacheResult:
    """Cache every video of a folder, and films of photographs, and return what became of each.

    What is already in the store, from an unchanged video, is kept; new captions, cuts or rates
    are added to it without touching its latents. A video that cannot be used is listed with its
    reason; the store is whole after every clip. Several processes may cache into one store.

    Args:
        experiment: its backbone implies codec, text encoder and frame rate.
        videos: a folder, a list or one file; None: there are only films.
        out: the store's folder, made where missing.
        photos: a folder of photographs to film as `cache.film` says; None: none.
        rates: LR rates that plugins need; those of `cache.rates` and of the store are added.
        pixels: whether a plugin needs the frames themselves.
        device: where the text encoder runs, and after it the codec.
        progress: called with done, total, and the seconds cached and the name of a video; where
            captions depend on cuts, first with how many videos were searched for them.
        shard: the part of the videos that this process takes; default: all.
        workers: processes that this one spreads its part over.
        prune: remove the clips of videos that are no longer among `videos`, and of films that are
            no longer made of `photos`; where one is None its clips stay.

    Raises:
        UserError: neither `videos` nor `photos` is given, no video is usable, the store belongs to
            another spec, or the disk is full.
        LongtakeError: a worker cannot start.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: 1 or more")
    shard = shard or Shard()
    sources, notes = _find(videos, photos, experiment)
    own = shard.of(sources)
    job = Job.of(experiment, out, rates, pixels, device)
    text: TextEncoder[TextEncoderSpec] = build(experiment.backbone.text_encoder).to(device)
    with claim_store(job, text, shard) as index:
        run = CacheRun.of(job, PromptEmbedder(out, text), index, progress)
        tasks = run.prepare(own, workers)
        measure_store_margins(job)
        outcomes = run.perform_all(own, tasks, workers)
        judged = (videos is not None, photos is not None)
        gone = run.gone(sources, *judged)
        if prune:
            run.remove_clips(gone)
        note_gone(out, sorted({*run.gone_before(*judged), *([] if prune else gone)}))
        captions = CaptionCount.of(own)
        result = CacheResult(
            out, outcomes, shard, gone, run.elapsed, captions, notes, prune, run.cut_captions
        )
        where = " and ".join(str(path) for path in (videos, photos) if path is not None)
        _refuse_none(result, where, len(sources))
    return result


def _find(
    videos: Path | None, photos: Path | None, experiment: Experiment
) -> tuple[list[Source], list[str]]:
    """Return videos and films, and notes on what lies among or beside them and is not used.

    Raises:
        UserError: as `find_sources` and `find_films`, or there is neither.
    """
    if videos is None and photos is None:
        raise UserError("nothing to cache: name --videos PATH, --photos FOLDER, or both")
    found = [] if videos is None else find_sources(videos)
    notes = [] if videos is None else notes_on(videos, found)
    films = [] if photos is None else find_films(photos, experiment.cache.film)
    notes += [] if photos is None else notes_on_photos(photos, found, films)
    return [*found, *films], list(dict.fromkeys(notes))


def _refuse_none(result: CacheResult, where: str, total: int) -> None:
    """Refuse videos of which none can be used; a shard of several may have bad luck."""
    if result.shard.world == 1 and result.count("bad") == total:
        raise UserError(
            f"none of the {total} videos in {where} could be used; the first: "
            f"{result.outcomes[0].detail}"
        )


@frozen
class CaptionCount:
    """How many of a run's videos have captions of their own, and where these stand.

    `origins` are names of lists, and suffixes of files beside the videos; of most videos first.
    """

    given: int = 0
    videos: int = 0
    origins: tuple[str, ...] = ()

    @classmethod
    def of(cls, sources: Sequence[Source]) -> CaptionCount:
        """Count the captions of these videos."""
        given = [one for one in sources if one.captions and (one.origin or not one.film)]
        origins = Counter(source.origin for source in given)
        ordered = tuple(origin for origin, _ in origins.most_common())
        return cls(origins.total(), len(sources), ordered)

    def __str__(self) -> str:
        places = [f"{origin} files" if origin[:1] == "." else origin for origin in self.origins]
        rest = "; the others go by their names" if 0 < self.given < self.videos else ""
        return (
            f"captions: {self.given} of {self.videos}, from "
            f"{', '.join(places) or 'nowhere: videos go by their names'}{rest}"
        )


@define
class CacheResult:
    """What a run of `cache` did.

    Attributes:
        store: its folder.
        outcomes: one a video of this process's shard.
        shard: which one that was.
        gone: sources that the store has, or had, and that are no longer among the videos.
        elapsed: seconds that reading and encoding took.
        captions: how many of its shard's videos have some.
        notes: what is among the videos and their captions and was not used, a line each.
        pruned: whether the clips of those that are gone were removed; else they stay.
        cut_captions: how many of the videos that this run read have a caption that is longer than
            the text encoder reads.
    """

    store: Path
    outcomes: list[Outcome] = field(factory=list)
    shard: Shard = Shard()
    gone: list[str] = field(factory=list)
    elapsed: float = 0.0
    captions: CaptionCount = CaptionCount()
    notes: list[str] = field(factory=list)
    pruned: bool = False
    cut_captions: int = 0

    @property
    def left_out(self) -> list[str]:
        """What cannot be used, and what was not done since its process died, a line each."""
        words = {"bad": "not used", "lost": "not done"}
        return [
            f"{says}: {one.detail}"
            for status, says in words.items()
            for one in self.outcomes
            if one.status == status
        ]

    def count(self, status: str) -> int:
        """Return how many videos have that status."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def seconds(self) -> float:
        """Seconds of video that were cached."""
        return sum(outcome.seconds for outcome in self.outcomes)


@define
class CacheRun:
    """A run of `cache` in one process: it plans, has the tasks done, and indexes what is finished.

    It is the only writer of its index file, and embeds the prompts of all its workers' tasks.

    Attributes:
        job: what all videos share.
        prompts: embeds into the store.
        index: this process's index file.
        records: of all clips in the store, by id.
        progress: as `cache` takes it.
        estimate: of the disk that the rest needs.
        outcomes: by source.
        total: videos of this run.
        cached: seconds of video that this run cached.
        cut_captions: videos with a caption that the text encoder does not read to its end.
        began: when tasks were begun, by `time.monotonic`; `elapsed` seconds ago at the last result.
    """

    job: Job
    prompts: PromptEmbedder
    index: Path
    records: dict[str, Record] = field(repr=False)
    progress: Progress | None
    estimate: DiskEstimate
    outcomes: dict[str, Outcome] = field(factory=dict, repr=False)
    total: int = 0
    cached: float = 0.0
    cut_captions: int = 0
    began: float = field(factory=time.monotonic)
    elapsed: float = 0.0

    @classmethod
    def of(
        cls, job: Job, prompts: PromptEmbedder, index: Path, progress: Progress | None
    ) -> CacheRun:
        """Return the run; `job` gets the rates that clips of the store have: all stay alike."""
        records = {record.id: record for record in read_index(job.root)}
        rates = {rate for record in records.values() for rate in (*record.rates, *record.added)}
        job.rates |= frozenset(map(Rate.parse, rates))
        return cls(job, prompts, index, records, progress, DiskEstimate(job.root))

    def prepare(self, sources: Sequence[Source], workers: int) -> list[Task]:
        """Return what is to be done for these videos, after embedding all prompts of it.

        That is before the codec is first used: text encoder and codec are never loaded together.

        Raises:
            UserError: the disk refuses, or the text encoder's weights are not there.
        """
        self.total = len(sources)
        tasks = [task for source in sources if (task := self._plan(source))]
        tasks = list(self._with_cuts(tasks, workers))
        self._report("prompts")
        prompts = [_prompts(task) for task in tasks]
        every = [prompt for some in prompts for prompt in some]
        unread = unread_of(self.prompts.encoder, every)
        self.cut_captions = sum(any(prompt in unread for prompt in some) for some in prompts)
        self.prompts.embed_missing(["", *every])
        return tasks

    def perform_all(
        self, sources: Sequence[Source], tasks: Sequence[Task], workers: int
    ) -> list[Outcome]:
        """Perform the tasks of these videos, and return what became of each video.

        Raises:
            UserError: the disk refuses.
            LongtakeError: a worker cannot start.
        """
        self.began = time.monotonic()
        with closing(self._results(tasks, workers)) as results:
            for result in results:
                self._index(result)
        self._report("")
        return [self.outcomes[source.id] for source in sources]

    def gone(self, sources: Sequence[Source], videos: bool, films: bool) -> list[str]:
        """Return what the store has clips of and that is not among the sources.

        Films of a photograph that is there but cannot be used now are not gone, as a video in that
        state is not.

        Args:
            sources: all videos and films of this run.
            videos: whether videos were looked for.
            films: whether films were.
        """
        present = {source.id for source in sources}
        faulty = {source.id for source in sources if source.fault}
        root = self.job.root
        return sorted(
            {
                record.source
                for i, record in self.records.items()
                if (films if record.photos else videos)
                and record.original_id not in present
                and not (record.photos and photo_of(record.original_id) in faulty)
                and clip_path(root, i).exists()
            }
        )

    def gone_before(self, videos: bool, films: bool) -> list[str]:
        """Return what an earlier run no longer found and this one did not look for."""
        judged = {r.source for r in self.records.values() if (films if r.photos else videos)}
        return [source for source in read_gone(self.job.root) if source not in judged]

    def remove_clips(self, gone: Sequence[str]) -> None:
        """Remove the clips of these sources from the store, which then is as if it never had them.

        Raises:
            UserError: the disk refuses.
        """
        sources = set(gone)
        for record in self.records.values():
            if record.source in sources:
                self._remove(record)

    def _remove(self, record: Record) -> None:
        files = [clip_path(self.job.root, record.id)]
        files += [rate_path(self.job.root, rate, record.id) for rate in record.added]
        for path in files:
            with disk_errors(path):
                path.unlink(missing_ok=True)

    def _plan(self, source: Source) -> Task | None:
        try:
            task = plan(self.job, source, self.records)
            status, detail = "kept", ""
        except Exception as error:  # whatever a single file does, the rest goes on
            task, status, detail = None, "bad", reason(source, error)
        if task is None:
            self.outcomes[source.id] = Outcome(source=source.name, status=status, detail=detail)
        return task

    def _with_cuts(self, tasks: Sequence[Task], workers: int) -> Iterator[Task]:
        """Look for the cuts that prompts depend on; progress counts these videos alone."""

        def report(done: int, note: str) -> None:
            if self.progress and total:
                self.progress(done, total, note)

        done, total = 0, sum(map(needs_cuts, tasks))
        report(done, "looking for cuts")
        with ThreadPoolExecutor(workers) as pool:
            for before, task in zip(tasks, pool.map(with_cuts, tasks), strict=True):
                if needs_cuts(before):
                    done += 1
                    report(done, f"cuts of {task.source.name}")
                yield task

    def _results(self, tasks: Sequence[Task], workers: int) -> Generator[TaskResult, None, None]:
        def starts(task: Task) -> None:
            self._report(task.source.name)

        if min(workers, len(tasks)) > 1:
            return run_workers(self.job, tasks, workers, starts)
        return _one_by_one(self.job, tasks, starts)

    def _index(self, result: TaskResult) -> None:
        """Index the clips of a video: from here on a later run keeps them."""
        captions = (caption for record in result.records for caption in record.captions)
        self.prompts.embed_missing(caption.text for caption in captions)
        for record in result.records:
            append_json_line(self.index, record.line())
            self._remove_stale_rates(record)
            self.records[record.id] = record
        if result.outcome.status == "cached":
            self._remove_stale_variants(result)
        self.outcomes[result.id] = result.outcome
        self.cached += result.outcome.seconds
        if result.outcome.status == "cached":
            self.estimate.add(clip_path(self.job.root, record.id) for record in result.records)
        self.elapsed = time.monotonic() - self.began

    def _remove_stale_variants(self, result: TaskResult) -> None:
        """Remove variants of what the video was before, such as those that are too short now."""
        new = {record.id for record in result.records}
        for variant in variants(self.job.spec):  # those of the store: its header says which
            record = self.records.get(result.id + suffix(variant))
            if record is not None and record.id not in new:
                self._remove(record)

    def _remove_stale_rates(self, new: Record) -> None:
        """Remove the files of rates that the clip, encoded anew, has inside its own file."""
        old = self.records.get(new.id)
        for rate in set(old.added if old else ()) - set(new.added):
            rate_path(self.job.root, rate, new.id).unlink(missing_ok=True)

    def _report(self, name: str) -> None:
        if self.progress:
            video = f"{self.cached:.0f} s of video" if self.cached else ""
            shortage = self.estimate.shortage(self.total - len(self.outcomes))
            note = ", ".join(filter(None, (video, shortage, name)))
            self.progress(len(self.outcomes), self.total, note)


def _prompts(task: Task) -> list[str]:
    """Return the prompts of a task; none where its video cannot be read."""
    if task.cuts is None and needs_cuts(task):
        return []
    cuts = task.records[0].cuts if task.cuts is None and task.records else task.cuts
    return [caption.text for caption in captions_of(task.source, cuts)]


def _one_by_one(
    job: Job, tasks: Sequence[Task], starts: TaskStarts
) -> Generator[TaskResult, None, None]:
    """Perform tasks in this process; what `run_workers` does in several."""
    for task in tasks:
        starts(task)
        yield perform(job, task)


@define
class DiskEstimate:
    """Estimates the disk that the rest of a store needs, by what its videos have taken so far.

    `videos` of `written` bytes were cached into the store at `root`.
    """

    root: Path
    videos: int = 0
    written: int = 0

    def add(self, clips: Iterable[Path]) -> None:
        """Count one more video, by the files of its clips."""
        self.videos += 1
        self.written += sum(path.stat().st_size for path in clips)

    def shortage(self, left: int) -> str:
        """Return a note of what so many more videos need, where more than is free; "" elsewhere.

        They are taken to be as large as those before them, so this is a warning and no promise.
        """
        if not self.videos:
            return ""
        needed, free = self.written / self.videos * left, shutil.disk_usage(self.root).free
        if needed <= free:
            return ""
        return f"the rest needs about {needed / GIGABYTE:.1f} GB of {free / GIGABYTE:.1f} GB free"
