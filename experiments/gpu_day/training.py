"""`train` and `table`: long work in parts that resume.

`train` caches, begins the bases in closed form, trains Stage I on them at both rates, as the
shipped weights were, and measures it. `table` is Table 1 under the full budget.
"""

from __future__ import annotations

import time
from pathlib import Path

import attrs
from attrs import frozen

from ...backbones.wan.specs import TinyWan
from ...core.cache.cache import cache
from ...core.config import load_experiment
from ...core.data.store import Store
from ...core.errors import LongtakeError, UserError
from ...core.experiment import CacheSpec, Experiment
from ...core.measure.measure import measure
from ...core.measure.prepare import MeasureSetup
from ...core.measure.strips import make_strips
from ...core.measure.verdict import as_data, verdict
from ...core.model import all_needs
from ...core.pages.report import Page, write_report
from ...core.tools.files import read_json, write_json
from ...core.tools.progress import progress_bar
from ...core.train.checkpoint import checkpoints, load_run, read_run, step_of, with_weights
from ...core.train.pretrain import pretrain
from ...core.values.grid import Rate
from ..closed_form import begin as closed_form
from ..common import interrupt_after, tinier, tiny_clips, training_progress
from ..table1 import __main__ as table1
from .day import Session, StepResult, TimeIsUp

BASES = {"2x2x2": "tiny-base", "4x4x2": "tiny-base-4x4x2"}  # by rate
BASE_BATCHES = 160  # of windows that a base is fitted to
VAL = "val"
BATCH_FACTOR = 4  # times the batch that suits two CPU cores
SAVE_MINUTES = 2.0  # what is lost at most when a run of the command is killed
TINY_TABLE = ("--budget", "tiny", "--rows", "proposed-4x4x2", "--seeds", "0")


def run(session: Session, results: StepResult) -> None:
    """Go on where the last run of the command stopped: cache, bases, Stage I, measure.

    Raises:
        TimeIsUp: time is up; the next run of the command goes on.
        UserError: the videos are missing or of no use.
    """
    videos = tiny_clips(session.keep / "videos") if session.videos is None else session.videos
    try:
        with interrupt_after(session.left):
            _all(session, results, videos)
    except KeyboardInterrupt:
        raise TimeIsUp from None


def _all(session: Session, results: StepResult, videos: Path) -> None:
    for one in planned_runs(session):
        store = store_of(one.experiment, session)
        spec = training_cache(one.experiment.cache)
        _cached(session, results, attrs.evolve(one.experiment, cache=spec), videos / "train", store)
        _trained(session, results, one, store)
    for one in measured_runs(session):
        store = session.keep / "stores" / VAL
        spec = attrs.evolve(one.experiment.cache, mirror=False, pixels=True)
        _cached(session, results, attrs.evolve(one.experiment, cache=spec), videos / VAL, store)
        _measured(session, results, one, store)


@frozen(kw_only=True)
class PlannedRun:
    """One training run.

    Attributes:
        experiment: what trains.
        after: the run whose weights it begins with, by name.
        base: the run whose DiT it reads as its frozen backbone, by name; None: it is a base, which
            begins in closed form and does not train.
    """

    experiment: Experiment
    after: str | None = None
    base: str | None = None

    @property
    def name(self) -> str:
        """The name of the experiment, and of the run's folder."""
        return self.experiment.name


def planned_runs(session: Session) -> list[PlannedRun]:
    """Return all runs: at each rate a base, then Stage I on it, on crops, then whole frames."""
    result = []
    for rate, base in BASES.items():
        first, last = (fitted(f"tiny-wan-{rate}{part}", session) for part in ("-crops", ""))
        result.append(PlannedRun(experiment=fitted(base, session)))
        result.append(PlannedRun(experiment=first, base=base, after=base))
        result.append(PlannedRun(experiment=last, base=base, after=first.name))
    return result


def measured_runs(session: Session) -> list[PlannedRun]:
    """Return the runs whose memory is measured at the end."""
    names = {f"tiny-wan-{rate}" for rate in BASES}
    return [run for run in planned_runs(session) if run.name in names]


def fitted(name: str, session: Session) -> Experiment:
    """Return a shipped experiment as this device trains it: larger batches on a GPU."""
    _, shipped = load_experiment(name)
    if session.tiny:
        return attrs.evolve(_tinier(shipped), name=name)
    train = attrs.evolve(shipped.train, save_minutes=SAVE_MINUTES)
    if session.device.type == "cuda":
        train = attrs.evolve(train, batch=BATCH_FACTOR * train.batch, accumulate=1)
    return attrs.evolve(shipped, name=name, train=train)


def _tinier(experiment: Experiment) -> Experiment:
    """Return an experiment of two steps whose DiT has a head for each place of a token's cell."""
    small = tinier(experiment)
    assert isinstance(small.backbone, TinyWan)
    dit = attrs.evolve(small.backbone, heads=8, layers=4, memory_time=0.0)
    train = attrs.evolve(small.train, crop=(8, 8))
    cache = attrs.evolve(small.cache, area=64 * 96)
    return attrs.evolve(small, backbone=dit, train=train, cache=cache)


def rates(session: Session) -> frozenset[Rate]:
    """Return the LR rates that any of the runs needs: one store serves all."""
    return frozenset[Rate]().union(
        *(all_needs(run.experiment).rates for run in planned_runs(session))
    )


def store_of(experiment: Experiment, session: Session) -> Path:
    """Return the folder of the store that an experiment trains on: by size and mirroring."""
    spec = experiment.cache
    return session.keep / "stores" / f"train-{spec.area}{'-mirror' if spec.mirror else ''}"


def training_cache(spec: CacheSpec) -> CacheSpec:
    """Return how training videos are cached: their frames are not read again."""
    return attrs.evolve(spec, pixels=False)


def _cached(
    session: Session, results: StepResult, experiment: Experiment, videos: Path, out: Path
) -> None:
    name = f"cache {out.name}"
    if name in results.figures and out.exists():
        return
    began = time.monotonic()
    with progress_bar(name) as report:
        result = cache(
            experiment,
            videos,
            out,
            rates=rates(session),
            pixels=experiment.cache.pixels,
            device=session.device,
            progress=report,
        )
    counts = {status: result.count(status) for status in ("cached", "kept", "bad")}
    results.add(name, {**counts, "seconds": round(time.monotonic() - began, 1)})


def _trained(session: Session, results: StepResult, one: PlannedRun, store: Path) -> None:
    out = _run_folder(session, one.name)
    experiment = one.experiment
    if one.base is None:
        if not checkpoints(out):
            batches = min(BASE_BATCHES, 40 * experiment.train.steps)
            data = Store.open(store)
            begun = closed_form.begin(experiment, data, batches)
            closed_form.write(begun, experiment, data, out, {})
            results.add(one.name, {"batches": batches})
        return
    weights = read_run(_run_folder(session, one.base))[1] / "backbone"
    experiment = with_weights(experiment, weights)
    if checkpoints(out) and step_of(checkpoints(out)[-1]) >= experiment.train.steps:
        return
    start = read_run(_run_folder(session, one.after))[1] if one.after else None
    with progress_bar(one.name) as report:
        result = pretrain(experiment, store, out, resume=True, start=start, progress=report)
    results.add(one.name, training_progress(out, result.step, experiment))
    if result.stopped:
        raise TimeIsUp


def _run_folder(session: Session, name: str) -> Path:
    return session.keep / "runs" / name


def _measured(session: Session, results: StepResult, one: PlannedRun, store: Path) -> None:
    name = f"measure {one.name}"
    if name in results.figures:
        return
    folder, out = _run_folder(session, one.name), session.keep / "measure" / one.name
    if not checkpoints(folder):
        raise UserError(f"{folder} has no checkpoint: train it first")
    setup = MeasureSetup.build(load_run(folder).to(session.device), Store.open(store))
    with progress_bar(name) as report:
        result = measure(setup, run=str(folder), progress=report)
    write_json(out / "measure.json", as_data(result))
    write_report(result, Page(strips=make_strips(setup, result)), out / "report.html")
    results.add(name, [str(line) for line in verdict(result)])


def run_table(session: Session, results: StepResult) -> None:
    """Go on with Table 1 where the last run of the command stopped; add its rows and claims.

    Raises:
        TimeIsUp: time is up; the next run of the command goes on.
        LongtakeError: a run failed, or the input is bad; the log says which.
    """
    out = session.keep / "table1"
    words = TINY_TABLE if session.tiny else ("--budget", "full", "--videos", str(session.videos))
    code = table1.main([*words, "--out", str(out), "--minutes", f"{max(0.0, session.left) / 60:g}"])
    written = out / "table1.json"
    if written.exists():
        table = read_json(written, "table")
        for name in ("rows", "claims", "floors", "encoder_seconds"):
            results.add(name, table[name])
    if code == table1.AGAIN:
        raise TimeIsUp
    if code:
        raise LongtakeError(f"the table ended with exit code {code}")
