"""What training on a GPU consists of, in order: caches, Stage 0, Stage I at both rates, figures."""

from __future__ import annotations

from pathlib import Path

import attrs
from attrs import frozen

from ...core.edge import load_experiment
from ...core.experiment import CacheSpec, Experiment
from ...core.grid import Rate
from ...core.model import all_needs
from .day import Day
from .tinier import tinier

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
    """Give all runs: Stage 0, then Stage I at each rate, on crops first, then whole frames."""
    found = [Run(experiment=fitted(BASE, day))]
    for rate in RATES:
        first, last = (fitted(f"tiny-wan-{rate}{part}", day) for part in ("-crops", ""))
        found.append(Run(experiment=first, base=BASE))
        found.append(Run(experiment=last, base=BASE, after=first.name))
    return found


def measured(day: Day) -> list[Run]:
    """Give the runs whose memory is measured at the end."""
    names = {f"tiny-wan-{rate}" for rate in RATES}
    return [run for run in runs(day) if run.name in names]


def fitted(name: str, day: Day) -> Experiment:
    """Give a shipped experiment as this device trains it: larger batches on a GPU."""
    _, found = load_experiment(name)
    if day.tiny:
        return attrs.evolve(tinier(found), name=name)
    train = attrs.evolve(found.train, save_minutes=SAVE_MINUTES)
    if day.device.type == "cuda":
        train = attrs.evolve(train, batch=MORE * train.batch, accumulate=1)
    return attrs.evolve(found, name=name, train=train)


def rates(day: Day) -> frozenset[Rate]:
    """Give the LR rates that any of the runs needs: one store serves all."""
    empty: frozenset[Rate] = frozenset()
    return empty.union(*(all_needs(run.experiment).rates for run in runs(day)))


def store_of(experiment: Experiment, day: Day) -> Path:
    """Give the folder of the store that an experiment trains on: by size and mirroring."""
    spec = experiment.cache
    return day.keep / "stores" / f"train-{spec.area}{'-mirror' if spec.mirror else ''}"


def training_cache(spec: CacheSpec) -> CacheSpec:
    """Give how training videos are cached: their frames are not read again."""
    return attrs.evolve(spec, pixels=False)
