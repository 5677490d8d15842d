"""The `cache` verb: videos into a latent store; resumable, and bad files are listed, not fatal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import torch
from attrs import define, field, frozen

from ..errors import UserError
from ..experiment import Experiment
from ..files import append_line, is_tensors, write_tensors
from ..grid import Rate
from .claim import Job, claim_store, make_job
from .encode import Encoded, encode_file
from .record import Record, clip_path, read_index
from .sources import Source, find_sources
from .store import text_tensors
from .video import fingerprint

Progress = Callable[[int, int, str], None]


@frozen(kw_only=True)
class Outcome:
    """What became of one video: `cached`, `kept` (already done) or `bad` with its reason."""

    source: str
    status: str
    detail: str = ""


@define
class CacheResult:
    """What a run of `cache` did."""

    store: Path
    outcomes: list[Outcome] = field(factory=list)

    def count(self, status: str) -> int:
        """Give how many videos have that status."""
        return sum(outcome.status == status for outcome in self.outcomes)


def cache(
    experiment: Experiment,
    videos: Path,
    out: Path,
    *,
    rates: frozenset[Rate],
    pixels: bool,
    device: torch.device,
    progress: Progress | None = None,
) -> CacheResult:
    """Cache every video of a folder into a store and give what became of each.

    What is already in the store, from an unchanged video and caption, is kept. A video that
    cannot be used is listed with its reason; the store is whole after every clip.

    Args:
        experiment: its backbone implies codec, text encoder and frame rate.
        videos: a folder or one file.
        out: the store's folder, made where missing.
        rates: LR rates that plugins need; those of `cache.rates` are added.
        pixels: whether a plugin needs the frames themselves.
        device: where the codec runs.
        progress: called with done, total and the name of the next video.

    Raises:
        UserError: no video is usable, the store belongs to another spec, or the disk is full.
    """
    sources = find_sources(videos)
    job = make_job(experiment, out, rates | frozenset(experiment.cache.rates), pixels, device)
    claim_store(job)
    done = {record.id: record for record in read_index(out)}
    result = CacheResult(out)
    for number, source in enumerate(sources):
        if progress:
            progress(number, len(sources), source.name)
        result.outcomes.append(_one(job, source, done))
    if progress:
        progress(len(sources), len(sources), "")
    if result.count("bad") == len(sources):
        first = result.outcomes[0]
        raise UserError(
            f"none of the {len(sources)} videos in {videos} could be used; the first: "
            f"{first.detail}"
        )
    return result


def _one(job: Job, source: Source, done: Mapping[str, Record]) -> Outcome:
    try:
        mark = fingerprint(source.path)
        if _is_done(job, source, mark, done):
            return Outcome(source=source.name, status="kept")
        encoded = _encode(job, source)
    except UserError as error:
        return Outcome(source=source.name, status="bad", detail=str(error))
    _write(job, source, mark, encoded, mirror=False)
    if job.spec.mirror:
        _write(job, source, mark, encoded.mirrored(job.codec, job.rates), mirror=True)
    return Outcome(source=source.name, status="cached", detail=str(encoded.placement))


def _is_done(job: Job, source: Source, mark: str, done: Mapping[str, Record]) -> bool:
    ids = [source.id, *([source.id + "-mirror"] if job.spec.mirror else [])]
    return all(
        i in done
        and (done[i].fingerprint, done[i].caption) == (mark, source.caption)
        and is_tensors(clip_path(job.root, i))
        for i in ids
    )


def _encode(job: Job, source: Source) -> Encoded:
    geometry = job.experiment.backbone.geometry
    with torch.no_grad():
        return encode_file(
            source.path,
            job.codec,
            geometry,
            job.spec,
            fps=geometry.fps,
            rates=job.rates,
            keep_pixels=job.spec.pixels or job.spec.mirror,
        )


def _write(job: Job, source: Source, mark: str, encoded: Encoded, *, mirror: bool) -> None:
    record = _record(source, mark, encoded, mirror)
    dtype = getattr(torch, job.spec.dtype)
    tensors = {"latents": encoded.latents[0].to(dtype)}
    tensors |= {f"lr/{rate}": lr[0].to(dtype) for rate, lr in encoded.lr.items()}
    tensors |= text_tensors(job.text.encode([source.caption]))
    if job.spec.pixels and encoded.pixels is not None:
        tensors["pixels"] = encoded.pixels[0]
    header = {**attrs.asdict(record), "codec": job.codec.identity, "margin": job.codec.margin}
    write_tensors(clip_path(job.root, record.id), tensors, header)
    append_line(job.root / "index" / "00000.jsonl", attrs.asdict(record))


def _record(source: Source, mark: str, encoded: Encoded, mirror: bool) -> Record:
    _, _, latents, height, width = encoded.latents.shape
    return Record(
        id=source.id + ("-mirror" if mirror else ""),
        source=source.name,
        fingerprint=mark,
        latents=latents,
        height=height,
        width=width,
        frames=encoded.frames,
        fps=encoded.fps,
        caption=source.caption,
        placement=str(encoded.placement),
        mirror=mirror,
    )
