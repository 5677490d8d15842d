"""The task of each video that is cached: what is left to do for it, and doing it.

`plan` compares a video with its records in the store; `perform` reads, encodes and writes, and
returns the records to index. A worker process performs tasks, its parent indexes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..data.captions import Caption, name_in_words, shot_captions
from ..data.sources import Source, on_video_clock
from ..data.store import Record, clip_path, rate_path
from ..errors import LongtakeError, UserError, printable
from ..tools.files import is_tensors, open_tensors, write_tensors
from ..values.grid import Rate
from ..video.cuts import detect_cuts
from ..video.decode import VideoError, fingerprint, out_of_memory
from .encode import Encoded, encode_file, encode_rates, file_chunks
from .job import Job

Cuts = tuple[float, ...] | None


@frozen(kw_only=True)
class Outcome:
    """What became of one video.

    Attributes:
        source: its name.
        status: `cached`; `updated` (captions, cuts or a rate, its latents untouched); `kept`
            (already done); `bad` (cannot be used); `lost` (the process at work on it died).
        detail: how it was fitted, what was updated, or the reason.
        seconds: of the video that were cached.
        note: what was wrong with a video that was cached nevertheless, such as a cut-off end.
    """

    source: str
    status: str
    detail: str = ""
    seconds: float = 0.0
    note: str = ""


@frozen(kw_only=True)
class Task:
    """What is to be done for one video.

    Attributes:
        source: the video.
        fingerprint: of its file.
        revision: of the records to write.
        records: those in the store that are to be updated; none: the video is to be encoded.
        rates: LR rates to add to those.
        search_cuts: whether to look for cuts.
        cuts: the cuts, where they had to be looked for before (its prompts depend on them).
    """

    source: Source
    fingerprint: str
    revision: int
    records: tuple[Record, ...] = ()
    rates: tuple[Rate, ...] = ()
    search_cuts: bool = False
    cuts: Cuts = None


@frozen(kw_only=True)
class TaskResult:
    """What a task gave: the outcome of source `id`, and the records to index."""

    id: str
    outcome: Outcome
    records: tuple[Record, ...] = ()


def plan(job: Job, source: Source, indexed: Mapping[str, Record]) -> Task | None:
    """Return what is to be done for a video, None where the store has all of it unchanged.

    Args:
        job: of the run.
        source: the video.
        indexed: the records of the store, by id.

    Raises:
        UserError: the file is missing, unreadable or empty, or its captions are at fault.
    """
    if source.fault:
        raise UserError(source.fault)
    mark = fingerprint(source.path)
    source = attrs.evolve(source, captions=on_video_clock(source.path, source.captions))
    ids = clip_ids(source, job.spec.mirror)
    old = tuple(indexed[i] for i in ids if i in indexed)
    task = Task(
        source=source,
        fingerprint=mark,
        revision=1 + max((record.revision for record in old), default=0),
    )
    if len(old) < len(ids) or not all(_is_current(job, record, mark) for record in old):
        return attrs.evolve(task, search_cuts=job.spec.cuts)
    rates = tuple(r for r in sorted(job.rates) if not all(has_rate(job, o, str(r)) for o in old))
    search_cuts = job.spec.cuts and old[0].cuts is None
    if not (rates or search_cuts or any(r.captions != captions_of(source, r.cuts) for r in old)):
        return None
    return attrs.evolve(task, records=old, rates=rates, search_cuts=search_cuts)


def clip_ids(source: Source, mirror: bool) -> list[str]:
    """Return the ids of the clips that a video makes."""
    return [source.id, *([source.id + "-mirror"] if mirror else [])]


def _is_current(job: Job, record: Record, mark: str) -> bool:
    return record.fingerprint == mark and is_tensors(clip_path(job.root, record.id))


def has_rate(job: Job, record: Record, rate: str) -> bool:
    """Return whether a clip has its LR latents of a rate, in a file that can be opened."""
    if rate in record.rates:
        return True
    return rate in record.added and is_tensors(rate_path(job.root, rate, record.id))


def captions_of(source: Source, cuts: Sequence[float] | None) -> tuple[Caption, ...]:
    """Return the captions of a video: its own, else its name and the shot."""
    return source.captions or shot_captions(name_in_words(Path(source.name)), cuts or ())


def needs_cuts(task: Task) -> bool:
    """Return whether the prompts of a task depend on cuts that are yet to be found."""
    return task.search_cuts and not task.source.captions


def with_cuts(task: Task) -> Task:
    """Return the task with its cuts found, where its prompts depend on them; else as it is.

    The task of a video that cannot be read, for whatever reason, stays as it is, too: performing it
    says why.

    Raises:
        UserError: what finds cuts is not installed.
    """
    if not needs_cuts(task):
        return task
    try:
        return attrs.evolve(task, cuts=detect_cuts(task.source.path))
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, VideoError):
            raise
        return task


def perform(job: Job, task: Task) -> TaskResult:
    """Do a task; a video that cannot be read has the outcome `bad`, and nothing is written for it.

    That is so whatever goes wrong with it: one file never ends a run.

    Raises:
        UserError: the disk refuses, or what finds cuts is not installed.
    """
    try:
        cuts = _cuts(task)
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, VideoError):
            raise  # this is not of the video but of the machine: it ends the run
        return _bad(task, error)
    try:
        with torch.no_grad():
            encoded = None if task.records else _encode(job, task)
            lr = {r.id: _missing_lr(job, task, r) for r in task.records if task.rates}
    except Exception as error:
        return _bad(task, error)
    if encoded is None:
        return _updated(job, task, cuts, lr)
    return _cached(job, task, cuts, encoded)


def _bad(task: Task, error: Exception) -> TaskResult:
    outcome = Outcome(source=task.source.name, status="bad", detail=reason(task.source, error))
    return TaskResult(id=task.source.id, outcome=outcome)


def reason(source: Source, error: Exception) -> str:
    """Return in one line why a video cannot be used, after an error of any kind."""
    if isinstance(error, LongtakeError):
        return str(error)
    said = " ".join(str(error).split())
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate" in said:
        return str(out_of_memory(source.path))
    kind = type(error).__name__
    return f"{source.name}: cannot be used ({printable(f'{kind}: {said}'.rstrip(': '))[:300]})"


def _cuts(task: Task) -> Cuts:
    if task.cuts is not None:
        return task.cuts
    if task.search_cuts:
        return detect_cuts(task.source.path)
    return task.records[0].cuts if task.records else None


def _encode(job: Job, task: Task) -> Encoded:
    geometry, spec = job.experiment.backbone.geometry, job.spec
    return encode_file(
        task.source.path,
        job.codec.to(job.device),
        geometry,
        spec,
        fps=geometry.fps,
        rates=job.rates,
        keep_pixels=spec.pixels or spec.mirror,
    )


def _cached(job: Job, task: Task, cuts: Cuts, encoded: Encoded) -> TaskResult:
    records = [_write(job, task, encoded, cuts, mirror=False)]
    if job.spec.mirror:
        with torch.no_grad():
            mirrored = encoded.mirrored(job.codec, job.rates)
        records.append(_write(job, task, mirrored, cuts, mirror=True))
    outcome = Outcome(
        source=task.source.name,
        status="cached",
        detail=str(encoded.placement),
        seconds=records[0].seconds,
        note=encoded.note,
    )
    return TaskResult(id=task.source.id, outcome=outcome, records=tuple(records))


def _write(job: Job, task: Task, encoded: Encoded, cuts: Cuts, *, mirror: bool) -> Record:
    record = _record(task, encoded, cuts, mirror)
    tensors = {"latents": encoded.latents[0].to(_dtype(job))}
    tensors |= {f"lr/{rate}": lr[0].to(_dtype(job)) for rate, lr in encoded.lr.items()}
    if job.spec.pixels and encoded.pixels is not None:
        tensors["pixels"] = encoded.pixels[0]
    header = {**record.line(), "codec": job.codec.identity, "margin": job.codec.margin}
    write_tensors(clip_path(job.root, record.id), tensors, header)
    return record


def _record(task: Task, encoded: Encoded, cuts: Cuts, mirror: bool) -> Record:
    _, _, latents, height, width = encoded.latents.shape
    return Record(
        id=task.source.id + ("-mirror" if mirror else ""),
        source=task.source.name,
        fingerprint=task.fingerprint,
        latents=latents,
        height=height,
        width=width,
        frames=encoded.frames,
        fps=encoded.fps,
        captions=captions_of(task.source, cuts),
        placement=str(encoded.placement),
        mirror=mirror,
        cuts=cuts,
        rates=tuple(sorted(map(str, encoded.lr))),
        revision=task.revision,
    )


def _missing_lr(job: Job, task: Task, record: Record) -> dict[Rate, Tensor]:
    """Encode the LR latents that a clip does not have, out of its frames or of the video."""
    missing = [rate for rate in task.rates if not has_rate(job, record, str(rate))]
    with ExitStack() as stack:
        lr = encode_rates(job.codec.to(job.device), _frames(job, task, record, stack), missing)
    for rate in missing:
        expected, count = rate.settled_tokens(record.latents), lr[rate].shape[2]
        if count != expected:
            raise UserError(
                f"{task.source.name}: gives {count} LR latents at {rate}, {expected} were "
                "expected: the video or its decoder changed; delete "
                f"{clip_path(job.root, record.id).name}"
            )
    return lr


def _frames(job: Job, task: Task, record: Record, stack: ExitStack) -> Iterator[Tensor]:
    """Return the frames of a clip as they were encoded, in chunks uint8 `[1, 3, n, P, Q]`."""
    file = stack.enter_context(open_tensors(clip_path(job.root, record.id)))
    if "pixels" in file.keys():
        pixels, chunk = file.get_slice("pixels"), job.spec.chunk
        return (pixels[:, k : k + chunk][None] for k in range(0, record.frames, chunk))
    geometry = job.experiment.backbone.geometry
    _, chunks = file_chunks(task.source.path, geometry, job.spec, fps=record.fps)
    return (chunk.flip(-1) for chunk in chunks) if record.mirror else chunks


def _updated(
    job: Job, task: Task, cuts: Cuts, lr: Mapping[str, Mapping[Rate, Tensor]]
) -> TaskResult:
    records = []
    for old in task.records:
        added = lr.get(old.id, {})
        for rate, latents in added.items():
            path = rate_path(job.root, str(rate), old.id)
            write_tensors(path, {"latents": latents[0].to(_dtype(job))}, {"clip": old.id})
        records.append(_revised(task, old, cuts, added))
    outcome = Outcome(source=task.source.name, status="updated", detail=_changes(task, records[0]))
    return TaskResult(id=task.source.id, outcome=outcome, records=tuple(records))


def _revised(task: Task, old: Record, cuts: Cuts, added: Mapping[Rate, Tensor]) -> Record:
    return attrs.evolve(
        old,
        captions=captions_of(task.source, cuts),
        cuts=cuts,
        added=tuple(sorted({*old.added, *map(str, added)})),
        revision=task.revision,
    )


def _changes(task: Task, new: Record) -> str:
    """Return what was updated, for the outcome's detail."""
    changes = [f"LR {rate}" for rate in task.rates]
    changes += ["cuts"] if task.search_cuts else []
    changes += ["captions"] if new.captions != task.records[0].captions else []
    return ", ".join(changes)


def _dtype(job: Job) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, job.spec.dtype)
    return dtype
