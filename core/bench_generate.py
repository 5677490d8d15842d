"""What `longtake bench generate` measures: whether a segment costs the same as a take grows.

A take of equal segments is made as `generate` makes it, in a folder. Of each segment stand the
seconds and bytes of what its memory costs (φ over what is new, its keys and values, the passes of
the model that read it) and of what follows from its latents. Nothing may grow with the take but a
pass of the model, and that only up to the memory budget.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from .bench import PROMPT, describe_machine
from .errors import UserError
from .experiment import Experiment
from .interfaces.backbone import Cache
from .model import Model, build_model
from .take.events import PixelsMade, SegmentMade, Step
from .take.plan import take_period
from .take.storyboard import Section, Storyboard
from .take.take import Take
from .take.work import Worker
from .tools.device import pick_device
from .tools.files import whole_file
from .tools.progress import Report
from .values.memory import Memory

SHOWN = (1, 10, 60)  # segments whose figures are printed, and the last one
NEAR = 2  # segments on either side whose median stands for one, since single times are noisy
SECONDS = {
    "update": "memory update",
    "step": "sampling step",
    "follow": "decode, LR, write",
    "segment": "whole segment",
}
BYTES = {
    "read": "memory that a step reads",
    "held": "memory in the process",
    "state": "φ's state on disk",
    "files": "a segment's files",
}


def bench_generate(
    experiment: Experiment,
    *,
    segments: int = 60,
    steps: int = 4,
    budget: int = 20,
    latents: int | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Make a take of equal segments in a temporary folder, and return what each of them cost.

    Args:
        experiment: what makes it, with weights as training begins.
        segments: how many.
        steps: of the sampler.
        budget: segments whose memory is kept.
        latents: of a segment; None: as many as four groups of the memory.
        progress: called with done, total and a note.

    Raises:
        UserError: the experiment has no memory, or a number is too small.
        LongtakeError: as `generate`.
    """
    if not experiment.remembers:
        raise UserError(f"{experiment.name} has no memory: there is nothing to time")
    given = {"segments": (segments, 3), "steps": (steps, 2), "budget": (budget, 1)}
    for name, (value, least) in given.items():
        if value < least:
            raise UserError(f"--{name} {value}: {least} or more")
    period = take_period(experiment)
    count = 4 * period if latents is None else latents
    if count < period or count % period:
        raise UserError(f"--latents {count}: segments of this memory are multiples of {period}")
    experiment = _timed(experiment, count, steps, budget)
    model = build_model(experiment).eval()
    with tempfile.TemporaryDirectory() as folder:
        take = Take.create(Path(folder) / "take", model=model, seed=0, device=pick_device())
        rows = _rows(take, segments, count, progress)
        size = take.folder.spec["size"]
    return {
        "experiment": experiment.name,
        "machine": describe_machine(),
        "model": _describe(model) | {"height": size[0], "width": size[1]},
        "segments": segments,
        "latents": count,
        "seconds_of_video": _seconds_of_video(experiment, count),
        "steps": steps,
        "budget_segments": budget,
        "at": {str(n): _at(rows, n) for n in shown(segments)},
        "full_from": full_from(rows),
        "growth": growth(rows),
        "rows": rows,
    }


def _seconds_of_video(experiment: Experiment, latents: int) -> float:
    geometry = experiment.backbone.geometry
    return latents * geometry.vae_stride.time / geometry.fps


def _timed(experiment: Experiment, latents: int, steps: int, budget: int) -> Experiment:
    """Return the experiment with segments, steps and budget as they are timed."""
    seconds = _seconds_of_video(experiment, latents)
    generate = experiment.generate
    return attrs.evolve(
        experiment,
        generate=attrs.evolve(
            generate,
            sampler=attrs.evolve(generate.sampler, steps=steps),
            segment_seconds=_seconds_of_video(experiment, latents + 1),
            budget=attrs.evolve(
                generate.budget,
                max_history_seconds=budget * seconds,
                max_memory_tokens=None,
                keep_first_seconds=0.0,
            ),
            deliver_every=0,
        ),
    )


def _describe(model: Model) -> dict[str, Any]:
    """Return the sizes of a model."""
    spec, geometry = model.experiment.backbone, model.backbone.geometry
    kind = type(spec).__name__
    return {
        "backbone": kind,
        "attention": getattr(spec, "attention", None),
        "backbone_parameters": sum(p.numel() for p in model.backbone.parameters()),
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "width": geometry.width,
        "channels": geometry.channels,
        "compressors": [type(one).__name__ for one in model.experiment.compressors],
    }


def _rows(take: Take, segments: int, latents: int, progress: Report | None) -> list[dict[str, Any]]:
    """Make the take, and return a row of figures a segment."""
    clock = time.process_time if take.device.type == "cpu" else _synchronized
    worker = Worker(take, limit=None)
    seconds = latents * take.stride / take.folder.fps
    story = Storyboard(
        sections=tuple(Section(prompt=PROMPT, seconds=seconds) for _ in range(segments))
    )
    take.take_plan(take.plan(story))
    worker.past.clock = clock
    rows: list[dict[str, Any]] = []
    laps: list[float] = []
    began = clock()
    for event in worker.all_to_be_made():
        if isinstance(event, Step):
            laps.append(clock())
        elif isinstance(event, SegmentMade):
            rows.append(_sampled(worker, event, laps))
            laps.clear()
        elif isinstance(event, PixelsMade):
            rows[-1] |= _followed(worker, event, rows[-1])
            rows[-1]["segment"], began = clock() - began, clock()
            if progress:
                progress(len(rows), segments, f"{rows[-1]['tokens']:,} memory tokens")
    return rows


def _synchronized() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def _sampled(worker: Worker, event: SegmentMade, laps: Sequence[float]) -> dict[str, Any]:
    """Return the figures of a segment that was sampled; its first step reads the memory in."""
    take, held = worker.take, worker.remembering
    assert held is not None
    stored, cache = take.folder.segment(event.id, event.segment), held.cache
    width = take.model_of().backbone.geometry.width
    return {
        "segment_number": event.segment,
        "tokens": event.tokens,
        "append": float(stored.made["remembering"]),
        "step": statistics.median(b - a for a, b in zip(laps, laps[1:], strict=False)),
        "read": event.tokens * width * 4 if cache is None else cache_bytes(cache),
    }


def _followed(worker: Worker, event: PixelsMade, row: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of what followed from a segment."""
    take, past = worker.take, worker.past
    id = past.links[event.segment - 1].id
    memory = take.folder.cache_path(id) / "memory.safetensors"
    folders = (take.folder.cache_path(id), take.folder.segment_path(id))
    remembering = worker.remembering
    cache = None if remembering is None else remembering.cache
    held = sum(memory_bytes(one) for one in past.settled if one is not None)
    held += 0 if remembering is None else memory_bytes(remembering.kept)
    return {
        "phi": event.spent.get("memory", 0.0),
        "update": row["append"] + event.spent.get("memory", 0.0),
        "follow": sum(took for name, took in event.spent.items() if name != "memory"),
        "held": held + (0 if cache is None else cache_bytes(cache)),
        "state": memory.stat().st_size,
        "files": sum(f.stat().st_size for folder in folders for f in folder.iterdir()),
    }


def memory_bytes(memory: Memory) -> int:
    """Return the bytes of a memory's tokens and features."""
    return sum(x.nbytes for part in memory.parts for x in (part.tokens, *part.features.values()))


def cache_bytes(cache: Cache) -> int:
    """Return the bytes of a cache: keys and values of every block, and the tokens."""
    return sum(x.nbytes for x in (*cache.keys, *cache.values)) + memory_bytes(cache.memory)


def shown(segments: int) -> list[int]:
    """Return the segments whose figures are printed."""
    return sorted({*(n for n in SHOWN if n < segments), segments})


def _at(rows: Sequence[dict[str, Any]], number: int) -> dict[str, float]:
    """Return the figures of one segment: seconds as the median of its neighbours', bytes exactly.

    The first segment reads no memory, so it stands alone.
    """
    near = rows[:1] if number == 1 else rows[max(1, number - 1 - NEAR) : number + NEAR]
    row = rows[number - 1]
    seconds = {name: statistics.median(one[name] for one in near) for name in SECONDS}
    return {"tokens": row["tokens"], **seconds, **{name: row[name] for name in BYTES}}


def full_from(rows: Sequence[dict[str, Any]]) -> int | None:
    """Return the first segment that reads as much as any; None: the last one does, alone."""
    most = max(row["tokens"] for row in rows)
    first = next(n for n, row in enumerate(rows, start=1) if row["tokens"] == most)
    return first if first < len(rows) else None


def growth(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return each figure over the last quarter of a take, over that of a span before it.

    The step, and what it reads, is compared with the first segments that read a full memory, all
    else with the second quarter.
    """
    quarter = max(1, len(rows) // 4)
    full = (full_from(rows) or len(rows)) - 1
    early, filled = rows[quarter : 2 * quarter], rows[full : full + quarter]

    def ratio(name: str, before: Sequence[dict[str, Any]]) -> float:
        first, last = (
            statistics.median(row[name] for row in part) for part in (before, rows[-quarter:])
        )
        return float(last / first) if first else 1.0

    return {
        name: ratio(name, filled if name in ("step", "read", "segment") else early)
        for name in (*SECONDS, *BYTES)
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Return the figures as lines to read."""
    model, machine = result["model"], result["machine"]
    told = [
        f"{result['experiment']} on {machine['device']} ({machine['name']}, {machine['threads']} "
        f"threads), torch {machine['torch']}: {model['backbone']} of "
        f"{model['backbone_parameters'] / 1e6:.1f} M, {model['attention']} attention, encoder of "
        f"{model['encoder_parameters'] / 1e6:.1f} M, {model['width']}x{model['height']}",
        f"{result['segments']} segments of {result['latents']} latents "
        f"({result['seconds_of_video']:g} s), {result['steps']} steps each, memory of "
        f"{result['budget_segments']} segments"
        + (f", full from segment {result['full_from']} on" if result["full_from"] else ""),
    ]
    numbers = list(result["at"])
    told.append(f"{'segment':<28}" + "".join(f"{n:>12}" for n in numbers) + "      growth")
    told.append(_row("memory tokens", [f"{result['at'][n]['tokens']:,}" for n in numbers], ""))
    for name, title in SECONDS.items():
        figures = [f"{result['at'][n][name] * 1e3:,.1f} ms" for n in numbers]
        told.append(_row(title, figures, f"{result['growth'][name]:.2f}×"))
    for name, title in BYTES.items():
        figures = [f"{result['at'][n][name] / 1e6:,.3f} MB" for n in numbers]
        told.append(_row(title, figures, f"{result['growth'][name]:.2f}×"))
    return told


def _row(title: str, figures: Iterable[str], growth: str) -> str:
    return f"{title:<28}" + "".join(f"{figure:>12}" for figure in figures) + f"{growth:>12}"


def save_chart(result: dict[str, Any], path: Path) -> Path:
    """Draw seconds and bytes by segment as a picture, .svg or .png, and return its path."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    numbers = [row["segment_number"] for row in result["rows"]]
    with rc_context({"svg.hashsalt": "longtake", "font.size": 9}):
        figure = Figure(figsize=(8.0, 3.2), layout="constrained")
        panels: tuple[tuple[str, dict[str, str], float], ...] = (
            ("milliseconds", SECONDS, 1e3), ("megabytes", BYTES, 1e-6),
        )  # fmt: skip
        for axes, (unit, names, scale) in zip(figure.subplots(1, 2), panels, strict=True):
            for name, title in names.items():
                values = [row[name] * scale for row in result["rows"]]
                axes.plot(numbers, values, label=title, linewidth=1.2)
            if result["full_from"]:
                axes.axvline(result["full_from"], color="0.6", linewidth=0.8, linestyle="--")
            axes.set(xlabel="segment (dashed: memory is full)", ylabel=unit, yscale="log")
            axes.legend(
                frameon=False, fontsize=7, ncol=2, loc="lower center", bbox_to_anchor=(0.5, 1.0)
            )
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        with whole_file(path) as part:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(part, format=path.suffix[1:], dpi=130, metadata=metadata)
    return path
