"""Doing what is to be done for a video that is cached: its tensors, and records to index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import attrs
import torch
from torch import Tensor

from ..errors import UserError
from ..files import open_tensors, write_tensors
from ..grid import Rate
from .claim import Job
from .cuts import detect_cuts
from .encode import Encoded, encode_file, encode_rates, file_chunks
from .record import Record, clip_path, rate_path
from .video import VideoError
from .work import Done, Outcome, Task, captions_of, has_rate

Cuts = tuple[float, ...] | None


def perform(job: Job, task: Task) -> Done:
    """Do a task; a video that cannot be read is an outcome `bad`, and nothing is written for it.

    Raises:
        UserError: the disk refuses.
    """
    try:
        cuts = _cuts(task)
    except VideoError as error:  # another is not of the video but of the machine: it ends the run
        return _bad(task, error)
    try:
        with torch.no_grad():
            encoded = None if task.old else _encode(job, task)
            lr = {r.id: _further(job, task, r) for r in task.old if task.rates}
    except UserError as error:
        return _bad(task, error)
    if encoded is None:
        return _updated(job, task, cuts, lr)
    return _cached(job, task, cuts, encoded)


def _bad(task: Task, error: UserError) -> Done:
    outcome = Outcome(source=task.source.name, status="bad", detail=str(error))
    return Done(id=task.source.id, outcome=outcome)


def needs_cuts(task: Task) -> bool:
    """Say whether the prompts of a task depend on cuts that are yet to be found."""
    return task.cuts and not task.source.captions


def with_cuts(task: Task) -> Task:
    """Give the task with its cuts, where its prompts depend on them; else as it is.

    A video that cannot be read stays as it is, too: doing the task says why.

    Raises:
        UserError: what finds cuts is not installed.
    """
    if not needs_cuts(task):
        return task
    try:
        return attrs.evolve(task, found=detect_cuts(task.source.path))
    except VideoError:
        return task


def _cuts(task: Task) -> Cuts:
    if task.found is not None:
        return task.found
    if task.cuts:
        return detect_cuts(task.source.path)
    return task.old[0].cuts if task.old else None


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


def _further(job: Job, task: Task, record: Record) -> dict[Rate, Tensor]:
    """Give the LR latents that a clip lacks, out of its frames or of the video."""
    lacking = [rate for rate in task.rates if not has_rate(job, record, str(rate))]
    with ExitStack() as stack:
        lr = encode_rates(job.codec.to(job.device), _frames(job, task, record, stack), lacking)
    for rate in lacking:
        wanted, found = 1 + (record.latents - 1) // rate.time, lr[rate].shape[2]
        if found != wanted:
            raise UserError(
                f"{task.source.name}: gives {found} LR latents at {rate}, {wanted} were expected: "
                f"the video or its decoder changed; delete {clip_path(job.root, record.id).name}"
            )
    return lr


def _frames(job: Job, task: Task, record: Record, stack: ExitStack) -> Iterator[Tensor]:
    """Give the frames of a clip as they were encoded, uint8 `[1, 3, n, P, Q]`."""
    file = stack.enter_context(open_tensors(clip_path(job.root, record.id)))
    if "pixels" in file.keys():
        kept, chunk = file.get_slice("pixels"), job.spec.chunk
        return (kept[:, k : k + chunk][None] for k in range(0, record.frames, chunk))
    geometry = job.experiment.backbone.geometry
    _, chunks = file_chunks(task.source.path, geometry, job.spec, fps=record.fps)
    return (chunk.flip(-1) for chunk in chunks) if record.mirror else chunks


def _updated(job: Job, task: Task, cuts: Cuts, lr: Mapping[str, Mapping[Rate, Tensor]]) -> Done:
    records = []
    for old in task.old:
        added = lr.get(old.id, {})
        for rate, latents in added.items():
            path = rate_path(job.root, str(rate), old.id)
            write_tensors(path, {"latents": latents[0].to(_dtype(job))}, {"clip": old.id})
        records.append(_revised(task, old, cuts, added))
    outcome = Outcome(source=task.source.name, status="updated", detail=_changes(task, records[0]))
    return Done(id=task.source.id, outcome=outcome, records=tuple(records))


def _revised(task: Task, old: Record, cuts: Cuts, added: Mapping[Rate, Tensor]) -> Record:
    return attrs.evolve(
        old,
        captions=captions_of(task.source, cuts),
        cuts=cuts,
        added=tuple(sorted({*old.added, *map(str, added)})),
        revision=task.revision,
        own_text=False,
    )


def _changes(task: Task, new: Record) -> str:
    said = [f"LR {rate}" for rate in task.rates]
    said += ["cuts"] if task.cuts else []
    said += ["captions"] if new.captions != task.old[0].captions else []
    return ", ".join(said)


def _cached(job: Job, task: Task, cuts: Cuts, encoded: Encoded) -> Done:
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
    )
    return Done(id=task.source.id, outcome=outcome, records=tuple(records))


def _write(job: Job, task: Task, encoded: Encoded, cuts: Cuts, *, mirror: bool) -> Record:
    record = _record(task, encoded, cuts, mirror)
    tensors = {"latents": encoded.latents[0].to(_dtype(job))}
    tensors |= {f"lr/{rate}": lr[0].to(_dtype(job)) for rate, lr in encoded.lr.items()}
    if job.spec.pixels and encoded.pixels is not None:
        tensors["pixels"] = encoded.pixels[0]
    header = {**record.line(), "codec": job.codec.identity, "margin": job.codec.margin}
    write_tensors(clip_path(job.root, record.id), tensors, header)
    return record


def _dtype(job: Job) -> torch.dtype:
    found: torch.dtype = getattr(torch, job.spec.dtype)
    return found


def _record(task: Task, encoded: Encoded, cuts: Cuts, mirror: bool) -> Record:
    _, _, latents, height, width = encoded.latents.shape
    return Record(
        id=task.source.id + ("-mirror" if mirror else ""),
        source=task.source.name,
        fingerprint=task.mark,
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
