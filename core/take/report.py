"""Write what a take says of itself, report.json and report.html, from its folder and take.mp4."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from av.video.reformatter import VideoReformatter

from ..errors import UserError
from ..experiment import Experiment
from ..pages.take import write_take_report
from ..tools.files import read_json_lines, read_object, write_json
from ..video.decode import SCALING, Pixels, VideoError, open_video
from ..video.write import comment_of, count_frames
from .base import TakeBase
from .delivery import VIDEO, video_comment
from .figures import measure_frames
from .findings import SectionFacts, SegmentFacts, TakeFacts, TakeReport, report_take
from .folder import Segment, TakeFolder, safe_disk
from .order import NUMBER, Entry, Order, check_types, is_number, or_null
from .past import STANDS_IN, links_of, stands_in


def write_report(take: TakeBase, *, network: bool | None = None) -> TakeReport:
    """Write report.json and report.html into the folder of a take, and return what they say.

    take.mp4 is read frame by frame, where it is there and of the segments that are made now; else
    the report says what the take knows without it.

    Args:
        take: whose report it is.
        network: whether TransNetV2 judges cuts; None: where it is installed.

    Raises:
        UserError: a segment is gone or damaged, or the disk refuses.
        LongtakeError: the disk is full.
        VideoError: take.mp4 cannot be read.
    """
    facts, figures, path = take_facts(take), None, take.root / VIDEO
    links = links_of(take.folder, take.order)
    if links and count_frames(path, video_comment(take, links)) is not None:
        figures = measure_frames(every_frame(path), facts.joins, network=network)
    report = report_take(facts, figures)
    with safe_disk(len(links)):
        write_take_report(report, figures, take.root)
    return report


def report_segment(take: TakeBase, number: int, *, network: bool | None = None) -> TakeReport:
    """Return what there is to say of one segment, beside the one before it; nothing is written.

    Its clip and that of the segment before are read, or decoded where they are not made yet.

    Args:
        take: that it is of.
        number: of a segment that is made, from 1.
        network: whether TransNetV2 judges cuts; None: where it is installed.

    Raises:
        UserError: a segment is gone or damaged.
    """
    order, whole = take.order, take_facts(take)
    entries = order.entries
    near = [n for n in (number - 1, number) if n > 0]
    given = [n for n in near if entries[n - 1].source]
    counts = {n: take.frames_of(order.first(n), entries[n - 1].latents) for n in near}
    facts = attrs.evolve(
        whole,
        source_frames=sum(counts[n] for n in given),
        sections=(),
        segments=tuple(one for one in whole.segments if one.number in near),
    )
    frames = chain.from_iterable(_frames_of(take, n) for n in near)
    figures = measure_frames(frames, facts.joins, network=network)
    held_back = figures.frames != sum(counts.values())  # by a codec that is not causal
    report = report_take(facts, None if held_back else figures)
    own = tuple(one for one in report.findings if one.segment in (None, number))
    return attrs.evolve(report, findings=own)


def _frames_of(take: TakeBase, number: int) -> Iterator[Pixels]:
    """Return the frames of a segment: of its clip, else from its latents."""
    clip = take.folder.cache_path(take.order.entries[number - 1].id or "") / "clip.mp4"
    return every_frame(clip) if clip.is_file() else take.frames(number)


def every_frame(path: Path) -> Iterator[Pixels]:
    """Yield every frame of a video as it is stored, uint8 `[H, W, 3]`.

    Raises:
        VideoError: it cannot be read, or not to its end.
    """
    reformatter: Any = VideoReformatter()
    with open_video(path) as video:
        for timed in video.frames():
            shown = reformatter.reformat(timed.frame, format="rgb24", interpolation=SCALING)
            yield shown.to_ndarray()
        if video.damage:
            raise VideoError(path, f"is damaged ({video.damage}): remove it, it is made again")


def take_facts(take: TakeBase) -> TakeFacts:
    """Return what a take knows of itself.

    Raises:
        UserError: a segment is gone or damaged.
    """
    folder, order = take.folder, take.order
    source = sum(entry.latents for entry in order.entries if entry.source)
    entries = order.entries[: order.made]
    return TakeFacts(
        name=folder.root.absolute().name,
        fps=folder.fps,
        source_frames=take.frames_of(0, source) if source and entries else 0,
        sections=_sections(take, order),
        segments=tuple(_segments(take, entries)),
        budget=_budget(take.experiment),
        notes=(_made_by(folder),),
        gone=_gone(take),
    )


def _gone(take: TakeBase) -> str:
    """Return the source's name where the codec's frames are shown in place of its own."""
    source = take.source()
    shown = source is not None and stands_in(take.folder, links_of(take.folder, take.order))
    return source.path.name if source is not None and shown else ""


def _sections(take: TakeBase, order: Order) -> tuple[SectionFacts, ...]:
    rows: dict[int, list[tuple[Entry, int]]] = {}
    for number, entry in enumerate(order.entries, start=1):
        if entry.section is not None:
            frames = take.frames_of(order.first(number), entry.latents)
            rows.setdefault(entry.section, []).append((entry, frames))
    return tuple(
        SectionFacts(
            prompt=own[0][0].prompt,
            start=own[0][0].start or 0.0,
            end=own[0][0].end,
            frames=sum(frames for _, frames in own),
            segments=len(own),
        )
        for _, own in sorted(rows.items())
    )


def _segments(take: TakeBase, entries: tuple[Entry, ...]) -> Iterator[SegmentFacts]:
    folder, first, hashes = take.folder, 0, list[str]()
    numbers = {section: n for n, section in enumerate(_order_of_sections(take.order), start=1)}
    spent = _seconds_beside(folder)
    for number, entry in enumerate(entries, start=1):
        assert entry.id is not None
        stored = folder.segment(entry.id, number)
        after_source = number > 1 and entries[number - 2].source and not entry.source
        yield SegmentFacts(
            number=number,
            section=None if entry.section is None else numbers[entry.section],
            first=first,
            latents=entry.latents,
            frames=0 if entry.source else take.frames_of(first, entry.latents),
            cut=entry.cut,
            stream="source" if after_source else "continued",
            memory=entry.memory,
            tokens=int(stored.made.get("tokens") or 0),
            parts={str(k): int(n) for k, n in (stored.made.get("parts") or {}).items()},
            dropped=int(stored.made.get("dropped") or 0),
            gain=stored.made.get("gain"),
            psnr=_loss_before(take, number - 1, entries[number - 2].id) if after_source else None,
            seconds=_seconds(stored) | spent.get(entry.id, {}),
            other_past=stored.recipe.get("past") != folder.chain(hashes),
        )
        hashes.append(stored.latents_hash)
        first += entry.latents


def _order_of_sections(order: Order) -> list[int]:
    return sorted({entry.section for entry in order.entries if entry.section is not None})


def _seconds(stored: Segment) -> dict[str, float]:
    """Return what sampling took, and before it the keys and values of what memory is new."""
    seconds = stored.made.get("seconds")
    if seconds is None:
        return {}
    remembering = float(stored.made.get("remembering") or 0.0)
    return {"sampling": float(seconds) - remembering, "remembering": remembering}


def _seconds_beside(folder: TakeFolder) -> dict[str, dict[str, float]]:
    """Return what followed from each segment took, by its id; the last time counts.

    It is in the log, since what follows from a segment is no part of it.
    """
    found: dict[str, dict[str, float]] = {}
    for line in read_json_lines(folder.root / "log.jsonl"):
        if line.get("kind") == "pixels" and isinstance(line.get("spent"), dict):
            id = Path(str(line.get("clip"))).parent.name
            times = line["spent"].items()
            found[id] = {str(name): float(took) for name, took in times if is_number(took)}
    return found


def _loss_before(take: TakeBase, number: int, id: str | None) -> float | None:
    """Return the codec's PSNR in dB over the last second of a source, which `number` ends.

    None where the clip is no longer the source's own frames, or the codec holds frames back. It is
    kept beside the clip, since it never changes.
    """
    source = take.source()
    if source is not None and source.recode:
        return None
    clip = take.folder.cache_path(id or "") / "clip.mp4"
    kept = clip.with_name("loss.json")
    if not clip.is_file() or STANDS_IN in (comment_of(clip) or ""):
        return None
    if kept.is_file():
        with suppress(UserError):  # damaged: it is measured again
            data: Mapping[str, Any] = read_object(kept, "codec's loss of a take")
            check_types(data, {"psnr": or_null(NUMBER)}, str(kept), "codec's loss of a take")
            return None if data["psnr"] is None else float(data["psnr"])
    count = max(1, round(take.folder.fps))
    shown, total = _last(every_frame(clip), count)
    coded, other = _last(take.frames(number), count)
    psnr = _psnr(shown, coded) if total == other else None
    write_json(kept, {"psnr": psnr})
    return psnr


def _last(frames: Iterator[Pixels], count: int) -> tuple[list[Pixels], int]:
    """Return the last frames, and how many there were in all."""
    kept: deque[Pixels] = deque(maxlen=count)
    total = 0
    for frame in frames:
        kept.append(frame)
        total += 1
    return list(kept), total


def _psnr(shown: list[Pixels], coded: list[Pixels]) -> float | None:
    squares = [
        float(np.square(a.astype(np.float32) - b).mean()) for a, b in zip(shown, coded, strict=True)
    ]
    mean = sum(squares) / len(squares) if squares else 0.0
    return 20 * math.log10(255) - 10 * math.log10(mean) if mean > 0 else None


def _budget(experiment: Experiment) -> str:
    if not experiment.remembers:
        return ""
    budget = experiment.generate.budget
    seconds = budget.seconds(experiment.train.seconds[1])
    parts = [
        *([f"{seconds:g} s"] if seconds is not None else []),
        *([f"{budget.max_memory_tokens:,} tokens"] if budget.max_memory_tokens else []),
        *([f"the first {budget.keep_first_seconds:g} s kept"] if budget.keep_first_seconds else []),
    ]
    return ", ".join(parts)


def _made_by(folder: TakeFolder) -> str:
    spec = folder.spec
    run = f"run {spec['run']} ({spec['checkpoint']})" if spec.get("run") else "a model in memory"
    return f"Made by {run}, seed {spec['seed']}."
