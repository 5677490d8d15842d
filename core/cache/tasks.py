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
from ..data.variants import ORIGINAL, Variant, suffix, variants
from ..errors import LongtakeError, UserError, printable
from ..tools.files import is_tensors, open_tensors, write_tensors
from ..values.grid import Rate
from ..video.cuts import detect_cuts
from ..video.decode import VideoError, fingerprint, out_of_memory
from .encode import (
    Encoded,
    encode_file,
    encode_film,
    encode_pixels,
    encode_rates,
    file_chunks,
    filmed_chunks,
)
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
        source: the video or the film.
        fingerprint: of its file, or of all that the film depends on.
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
    film = source.film
    mark = film.fingerprint() if film else fingerprint(source.path)
    if not film:
        source = attrs.evolve(source, captions=on_video_clock(source.path, source.captions))
    ids = _expected_ids(job, source, indexed.get(source.id))
    old = tuple(indexed[i] for i in ids if i in indexed)
    task = Task(
        source=source,
        fingerprint=mark,
        revision=1 + max((record.revision for record in old), default=0),
        cuts=film.cuts() if film else None,
    )
    search_cuts = job.spec.cuts and not film
    if len(old) < len(ids) or not all(_is_current(job, record, mark) for record in old):
        return attrs.evolve(task, search_cuts=search_cuts)
    rates = tuple(r for r in sorted(job.rates) if not all(has_rate(job, o, str(r)) for o in old))
    search_cuts = search_cuts and old[0].cuts is None
    if not (rates or search_cuts or _captions_changed(source, old)):
        return None
    return attrs.evolve(task, records=old, rates=rates, search_cuts=search_cuts)


def _captions_changed(source: Source, old: Sequence[Record]) -> bool:
    original = old[0]
    new = captions_of(source, original.cuts)
    return any(
        record.captions != Variant.of(record).captions(new, original.seconds) for record in old
    )


def _expected_ids(job: Job, source: Source, original: Record | None) -> list[str]:
    """Return the ids of the clips that a video makes, the original's first.

    Of one that is not in the store yet that is its own alone: which variants are long enough is not
    known.
    """
    if original is None:
        return [source.id]
    long_enough = _long_enough(job, original.frames)
    return [source.id + suffix(variant) for variant in long_enough]


def _long_enough(job: Job, frames: int) -> list[Variant]:
    """Return the variants of a clip of so many frames that are no shorter than may be."""
    geometry = job.experiment.backbone.geometry
    least, stride = geometry.frames(job.spec.min_seconds), geometry.vae_stride.time
    return [
        variant
        for variant in variants(job.spec)
        if variant == ORIGINAL or variant.frames(frames, stride) >= least
    ]


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
    if isinstance(error, LongtakeError):  # a film names its photographs, not itself
        return f"{source.name}: {error}" if source.film else str(error)
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


def _encode(job: Job, task: Task) -> list[tuple[Variant, Encoded]]:
    """Encode a video as it is, then its variants, each from its frames."""
    original = _encode_original(job, task)
    codec = job.codec.to(job.device)
    made = [(ORIGINAL, original)]
    for variant in _long_enough(job, original.frames)[1:]:
        chunks = _varied(job, task, variant, original)
        keep = job.spec.pixels
        encoded = encode_pixels(codec, chunks, job.rates, keep, original.fps, original.placement)
        made.append((variant, encoded))
    return made


def _encode_original(job: Job, task: Task) -> Encoded:
    geometry, spec = job.experiment.backbone.geometry, job.spec
    codec, film = job.codec.to(job.device), task.source.film
    keep = spec.pixels or any(one.speed == 1 for one in variants(spec)[1:])
    if film:
        return encode_film(film, codec, geometry, spec, rates=job.rates, keep_pixels=keep)
    return encode_file(
        task.source.path,
        codec,
        geometry,
        spec,
        fps=geometry.fps,
        rates=job.rates,
        keep_pixels=keep,
    )


def _varied(job: Job, task: Task, variant: Variant, original: Encoded) -> Iterator[Tensor]:
    """Return the frames of a variant, uint8 `[1, 3, n, P, Q]`."""
    stride = job.experiment.backbone.geometry.vae_stride.time
    if variant.speed == 1 and original.pixels is not None:
        chunks = iter([original.pixels[:, :, : original.frames]])
    else:
        count = variant.frames(original.frames, stride)
        chunks = _read(job, task, original.fps / variant.speed, count)
    return variant.apply(chunks, stride)


def _read(job: Job, task: Task, fps: float, count: int | None = None) -> Iterator[Tensor]:
    geometry, film = job.experiment.backbone.geometry, task.source.film
    if film:
        return filmed_chunks(film, geometry, job.spec, fps=fps, count=count)[1]
    return file_chunks(task.source.path, geometry, job.spec, fps=fps, count=count)[1]


def _cached(
    job: Job, task: Task, cuts: Cuts, made: Sequence[tuple[Variant, Encoded]]
) -> TaskResult:
    original = made[0][1]
    records = [_write(job, task, one, cuts, variant, original) for variant, one in made]
    left_out = [one for one in variants(job.spec) if one not in [variant for variant, _ in made]]
    short = [f"{suffix(one)[1:]} would be too short" for one in left_out]
    outcome = Outcome(
        source=task.source.name,
        status="cached",
        detail=str(original.placement),
        seconds=records[0].seconds,
        note="; ".join(filter(None, (original.note, *short))),
    )
    return TaskResult(id=task.source.id, outcome=outcome, records=tuple(records))


def _write(
    job: Job, task: Task, encoded: Encoded, cuts: Cuts, variant: Variant, original: Encoded
) -> Record:
    record = _record(task, encoded, cuts, variant, original)
    tensors = {"latents": encoded.latents[0].to(_dtype(job))}
    tensors |= {f"lr/{rate}": lr[0].to(_dtype(job)) for rate, lr in encoded.lr.items()}
    if job.spec.pixels and encoded.pixels is not None:
        tensors["pixels"] = encoded.pixels[0]
    header = {**record.line(), "codec": job.codec.identity, "margin": job.codec.margin}
    write_tensors(clip_path(job.root, record.id), tensors, header)
    return record


def _record(
    task: Task, encoded: Encoded, cuts: Cuts, variant: Variant, original: Encoded
) -> Record:
    _, _, latents, height, width = encoded.latents.shape
    seconds = original.frames / original.fps
    film = task.source.film
    return Record(
        id=task.source.id + suffix(variant),
        source=task.source.name,
        fingerprint=task.fingerprint,
        latents=latents,
        height=height,
        width=width,
        frames=encoded.frames,
        fps=encoded.fps,
        captions=variant.captions(captions_of(task.source, cuts), seconds),
        placement=str(encoded.placement),
        mirror=variant.mirror,
        cuts=None if cuts is None else variant.cuts(cuts, seconds),
        rates=tuple(sorted(map(str, encoded.lr))),
        revision=task.revision,
        reverse=variant.reverse,
        speed=variant.speed,
        photos=tuple(photo.name for photo in film.photos) if film else (),
        photo_marks=film.origins() if film else (),
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
    variant = Variant.of(record)
    count = None if variant == ORIGINAL else record.frames
    chunks = _read(job, task, record.fps / variant.speed, count)
    return variant.apply(chunks, job.experiment.backbone.geometry.vae_stride.time)


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
    variant, seconds = Variant.of(old), task.records[0].seconds
    return attrs.evolve(
        old,
        captions=variant.captions(captions_of(task.source, cuts), seconds),
        cuts=None if cuts is None else variant.cuts(cuts, seconds),
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
