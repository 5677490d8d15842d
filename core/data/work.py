"""What is to be done for a video that is cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen

from ..errors import UserError
from ..files import is_tensors
from ..grid import Rate
from .captions import Caption, name_in_words, shot_captions
from .claim import Job
from .record import Record, clip_path, rate_path
from .sources import Source
from .video import fingerprint


@frozen(kw_only=True)
class Outcome:
    """What became of one video.

    Attributes:
        source: its name.
        status: `cached`; `updated` (captions, cuts or a rate, its latents untouched); `kept`
            (already done); `bad` (cannot be used); `lost` (the process at work on it died).
        detail: how it was fitted, what was updated, or the reason.
        seconds: of the video that were cached.
    """

    source: str
    status: str
    detail: str = ""
    seconds: float = 0.0


@frozen(kw_only=True)
class Task:
    """What is to be done for one video.

    Attributes:
        source: the video; `mark` its fingerprint.
        old: its records in the store, where they are to be updated; none: encode it.
        rates: LR rates to add to those.
        cuts: whether to look for cuts.
        found: the cuts, where they had to be looked for before (its prompts depend on them).
        revision: of the records to write.
    """

    source: Source
    mark: str
    revision: int
    old: tuple[Record, ...] = ()
    rates: tuple[Rate, ...] = ()
    cuts: bool = False
    found: tuple[float, ...] | None = None


@frozen(kw_only=True)
class Done:
    """The outcome of a task of source `id`, and the records to index."""

    id: str
    outcome: Outcome
    records: tuple[Record, ...] = ()


def plan(job: Job, source: Source, done: Mapping[str, Record]) -> Task | None:
    """Give what is to be done for a video, None where the store has all of it unchanged.

    Raises:
        UserError: the file is missing, unreadable or empty, or its captions are at fault.
    """
    if source.fault:
        raise UserError(source.fault)
    mark = fingerprint(source.path)
    ids = clip_ids(source, job.spec.mirror)
    old = tuple(done[i] for i in ids if i in done)
    next_one = 1 + max((record.revision for record in old), default=0)
    if len(old) < len(ids) or not all(_whole(job, record, mark) for record in old):
        return Task(source=source, mark=mark, revision=next_one, cuts=job.spec.cuts)
    rates = tuple(r for r in sorted(job.rates) if not all(has_rate(job, o, str(r)) for o in old))
    cuts = job.spec.cuts and old[0].cuts is None
    if not (rates or cuts or any(r.captions != captions_of(source, r.cuts) for r in old)):
        return None
    return Task(source=source, mark=mark, revision=next_one, old=old, rates=rates, cuts=cuts)


def clip_ids(source: Source, mirror: bool) -> list[str]:
    """Give the ids of the clips that a video makes."""
    return [source.id, *([source.id + "-mirror"] if mirror else [])]


def _whole(job: Job, record: Record, mark: str) -> bool:
    return record.fingerprint == mark and is_tensors(clip_path(job.root, record.id))


def has_rate(job: Job, record: Record, rate: str) -> bool:
    """Whether a clip has its LR latents of a rate, in a file that can be opened."""
    added = rate in record.added and is_tensors(rate_path(job.root, rate, record.id))
    return rate in record.rates or added


def captions_of(source: Source, cuts: Sequence[float] | None) -> tuple[Caption, ...]:
    """Give the captions of a video: its own, else its name and the shot."""
    return source.captions or shot_captions(name_in_words(Path(source.name)), cuts or ())
