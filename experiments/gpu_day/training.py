"""`train`: the shipped weights' training in slices that resume, and what they measure."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
from attrs import frozen

from ...core.cache.cache import cache
from ...core.config import load_experiment
from ...core.data.store import Store
from ...core.errors import LongtakeError, UserError
from ...core.experiment import CacheSpec, Experiment
from ...core.measure.measure import measure
from ...core.measure.strips import make_strips
from ...core.measure.verdict import as_data, verdict
from ...core.model import all_needs
from ...core.pages.report import write_report
from ...core.tools.files import read_json, write_json
from ...core.tools.progress import progress_bar
from ...core.train.checkpoint import checkpoints, load_run, read_run, step_of, with_weights
from ...core.train.pretrain import pretrain
from ...core.values.grid import Rate
from ..common import alarm, curve, tinier, tiny_clips
from ..table1 import __main__ as table1
from .day import Book, Day, TimeIsUp

# ⟦experiments/gpu_steps/plan.py⟧ What training on a GPU consists of, in order: caches, Stage 0, Stage I at both rates, figures.


RATES = ("2x2x2", "4x4x2")
BASE = "tiny-base"
MORE = 4  # times the batch that suits two CPU cores
SAVE_MINUTES = 2.0  # what a killed slice loses at most


@frozen(kw_only=True)
class Run:
    """One training run.

    Attributes:
        experiment: what trains.
        after: the run whose weights it begins with, by name.
        base: the run whose DiT it reads as its frozen or first backbone, by name.
    """

    experiment: Experiment
    after: str | None = None
    base: str | None = None

    @property
    def name(self) -> str:
        """The name of the experiment, and of the run's folder."""
        return self.experiment.name


def runs(day: Day) -> list[Run]:
    """Return all runs: Stage 0, then Stage I at each rate, on crops first, then whole frames."""
    found = [Run(experiment=fitted(BASE, day))]
    for rate in RATES:
        first, last = (fitted(f"tiny-wan-{rate}{part}", day) for part in ("-crops", ""))
        found.append(Run(experiment=first, base=BASE))
        found.append(Run(experiment=last, base=BASE, after=first.name))
    return found


def measured(day: Day) -> list[Run]:
    """Return the runs whose memory is measured at the end."""
    names = {f"tiny-wan-{rate}" for rate in RATES}
    return [run for run in runs(day) if run.name in names]


def fitted(name: str, day: Day) -> Experiment:
    """Return a shipped experiment as this device trains it: larger batches on a GPU."""
    _, found = load_experiment(name)
    if day.tiny:
        return attrs.evolve(tinier(found), name=name)
    train = attrs.evolve(found.train, save_minutes=SAVE_MINUTES)
    if day.device.type == "cuda":
        train = attrs.evolve(train, batch=MORE * train.batch, accumulate=1)
    return attrs.evolve(found, name=name, train=train)


def rates(day: Day) -> frozenset[Rate]:
    """Return the LR rates that any of the runs needs: one store serves all."""
    empty: frozenset[Rate] = frozenset()
    return empty.union(*(all_needs(run.experiment).rates for run in runs(day)))


def store_of(experiment: Experiment, day: Day) -> Path:
    """Return the folder of the store that an experiment trains on: by size and mirroring."""
    spec = experiment.cache
    return day.keep / "stores" / f"train-{spec.area}{'-mirror' if spec.mirror else ''}"


def training_cache(spec: CacheSpec) -> CacheSpec:
    """Return how training videos are cached: their frames are not read again."""
    return attrs.evolve(spec, pixels=False)


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


# ⟦experiments/gpu_steps/table.py⟧ `table`: every way to carry history under the full budget, in slices that resume.


TINY = ("--budget", "tiny", "--rows", "proposed-4x4x2", "--seeds", "0")


def run_table(day: Day, book: Book) -> None:
    """Go on with the table where the last slice stopped, and note its rows and claims.

    Raises:
        TimeIsUp: this slice is over; the next one goes on.
        LongtakeError: a run failed, or the input is bad; the log says which.
    """
    out = day.keep / "table1"
    words = TINY if day.tiny else ("--budget", "full", "--videos", str(day.videos))
    code = table1.main([*words, "--out", str(out), "--minutes", f"{max(0.0, day.left) / 60:g}"])
    written = out / "table1.json"
    if written.exists():
        found = read_json(written, "table")
        for name in ("rows", "claims", "floors", "encoder_seconds"):
            book.note(name, found[name])
    if code == table1.AGAIN:
        raise TimeIsUp
    if code:
        raise LongtakeError(f"the table ended with exit code {code}")
