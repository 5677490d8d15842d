"""`train`: the shipped weights' training in slices that resume, and what they measure."""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from ...core.data.cache import cache
from ...core.data.store import Store
from ...core.errors import UserError
from ...core.experiment import Experiment
from ...core.files import read_lines, write_json
from ...core.measure.measure import measure
from ...core.measure.report import write_report
from ...core.measure.strips import make_strips
from ...core.measure.verdict import as_data, verdict
from ...core.progress import progress_bar
from ...core.train.checkpoint import checkpoints, load_run, read_run, step_of, with_weights
from ...core.train.log import METRICS, PACE
from ...core.train.pretrain import pretrain
from .day import Book, Day, TimeIsUp
from .plan import Run, measured, rates, runs, store_of, training_cache
from .tinier import tiny_clips

VAL = "val"


def run(day: Day, book: Book) -> None:
    """Go on where the last slice stopped: cache, Stage 0, Stage I, measure.

    Raises:
        TimeIsUp: this slice is over; the next one goes on.
        UserError: the videos are missing or of no use.
    """
    videos = tiny_clips(day.keep / "videos") if day.videos is None else day.videos
    try:
        with alarm(day.left):
            _all(day, book, videos)
    except KeyboardInterrupt:
        raise TimeIsUp from None


def _all(day: Day, book: Book, videos: Path) -> None:
    for one in runs(day):
        store = store_of(one.experiment, day)
        spec = training_cache(one.experiment.cache)
        _cached(day, book, attrs.evolve(one.experiment, cache=spec), videos / "train", store)
        _trained(day, book, one, store)
    for one in measured(day):
        store = day.keep / "stores" / VAL
        spec = attrs.evolve(one.experiment.cache, mirror=False, pixels=True)
        _cached(day, book, attrs.evolve(one.experiment, cache=spec), videos / VAL, store)
        _measured(day, book, one, store)


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Press Ctrl-C after some seconds: training then saves and ends, other work is broken off."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # as a shell starts what it puts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(max(0.0, seconds), _thread.interrupt_main)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)


def _cached(day: Day, book: Book, experiment: Experiment, videos: Path, out: Path) -> None:
    name = f"cache {out.name}"
    if name in book.figures and out.exists():
        return
    began = time.monotonic()
    with progress_bar(name) as report:
        done = cache(
            experiment,
            videos,
            out,
            rates=rates(day),
            pixels=experiment.cache.pixels,
            device=day.device,
            progress=report,
        )
    counts = {status: done.count(status) for status in ("cached", "kept", "bad")}
    book.note(name, {**counts, "seconds": round(time.monotonic() - began, 1)})


def _trained(day: Day, book: Book, one: Run, store: Path) -> None:
    out = day.keep / "runs" / one.name
    experiment = one.experiment
    if one.base:
        experiment = with_weights(experiment, read_run(_place(day, one.base))[1] / "backbone")
    if checkpoints(out) and step_of(checkpoints(out)[-1]) >= experiment.train.steps:
        return
    start = read_run(_place(day, one.after))[1] if one.after else None
    with progress_bar(one.name) as report:
        result = pretrain(experiment, store, out, resume=True, start=start, progress=report)
    book.note(one.name, curve(out, result.step, experiment))
    if result.stopped:
        raise TimeIsUp


def _place(day: Day, name: str) -> Path:
    return day.keep / "runs" / name


def curve(run: Path, step: int, experiment: Experiment) -> dict[str, Any]:
    """Give what a run has come to: steps, pace and its last logged figures."""
    lines = read_lines(run / METRICS)
    paces = [line["seconds_a_step"] for line in read_lines(run / PACE)]
    return {
        "step": step,
        "steps": experiment.train.steps,
        "batch": experiment.train.batch,
        "minutes": round(sum(paces) / max(1, len(paces)) * step / 60, 2),
        "last": lines[-1] if lines else None,
    }


def _measured(day: Day, book: Book, one: Run, store: Path) -> None:
    name = f"measure {one.name}"
    if name in book.figures:
        return
    place, out = _place(day, one.name), day.keep / "measure" / one.name
    if not checkpoints(place):
        raise UserError(f"{place} has no checkpoint: train it first")
    model, opened = load_run(place).to(day.device), Store.open(store)
    with progress_bar(name) as report:
        result = measure(model, opened, run=str(place), progress=report)
    write_json(out / "measure.json", as_data(result))
    write_report(result, make_strips(model, opened, result), out / "report.html")
    book.note(name, [str(line) for line in verdict(result)])
