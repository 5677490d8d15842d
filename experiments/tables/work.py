"""One run of a table: train a row with a seed, measure it, and keep what the table needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, frozen

from ...core.data.cache import cache
from ...core.data.record import Record
from ...core.data.store import Store
from ...core.device import pick_device
from ...core.experiment import Experiment
from ...core.files import read_json, write_json
from ...core.grid import Rate
from ...core.measure.measure import measure
from ...core.measure.quality import Kept
from ...core.measure.result import MeasureResult
from ...core.model import Model, all_needs
from ...core.progress import progress_bar
from ...core.train.checkpoint import load_run
from ...core.train.pretrain import pretrain
from ..gpu_steps.facts import commit, facts
from ..gpu_steps.training import curve
from .budget import Budget
from .cost import cost
from .rows import Row
from .strips import save_strip

FORMAT = 1
WHAT = "result of one run of a table"


@frozen(kw_only=True)
class Bench:
    """Where a table's work lies.

    Attributes:
        out: folder of the table; `stores`, `runs` and `measured` lie in it.
        videos: folder with `train` and `val`.
    """

    out: Path
    videos: Path
    budget: Budget

    def run(self, row: Row, seed: int) -> Path:
        """Give the folder of a training run."""
        return self.out / "runs" / f"{row.name}-{seed}"

    def result(self, row: Row, seed: int) -> Path:
        """Give the file of what was measured."""
        return self.out / "measured" / f"{row.name}-{seed}.json"

    def store(self, split: str) -> Path:
        """Give the store of a split."""
        return self.out / "stores" / split

    def read(self, row: Row, seed: int) -> dict[str, Any] | None:
        """Give what was measured, or None where that is still to come."""
        path = self.result(row, seed)
        return dict(read_json(path, WHAT)) if path.exists() else None


def prepare(bench: Bench, rows: list[Row]) -> None:
    """Cache the clips of both splits at every rate that a row needs; what is there is kept.

    Raises:
        UserError: a folder of videos is missing or of no use.
    """
    for split in ("train", "val"):
        needed = [all_needs(bench.budget.experiment(row, 0)) for row in rows]
        rates = frozenset[Rate]().union(*(needs.rates for needs in needed))
        pixels = split == "val" or any(needs.pixels for needs in needed)
        spec = evolve(bench.budget.cache, mirror=split == "train", pixels=pixels)
        experiment = evolve(bench.budget.experiment(rows[0], 0), cache=spec)
        with progress_bar(f"cache {split}") as report:
            cache(
                experiment,
                bench.videos / split,
                bench.store(split),
                rates=rates,
                pixels=pixels,
                device=pick_device(),
                progress=report,
            )


def work(bench: Bench, row: Row, seed: int) -> bool:
    """Train and measure one run, going on where it stopped; False if it was stopped again."""
    experiment, out = bench.budget.experiment(row, seed), bench.run(row, seed)
    with progress_bar(out.name) as report:
        trained = pretrain(experiment, bench.store("train"), out, resume=True, progress=report)
    if trained.stopped:
        return False
    model, store, kept = load_run(out).to(pick_device()), Store.open(bench.store("val")), Kept()
    with progress_bar(f"measure {out.name}") as report:
        result = measure(model, store, run=out.name, keep=kept, progress=report)
    save_strip(bench.out / "strips" / f"{out.name}.png", model, store, result, kept)
    body = {"row": row.name, "seed": seed, **_body(model, store, result)}
    trained_as = curve(out, trained.step, experiment)
    write_json(bench.result(row, seed), {"format": FORMAT, **body, "training": trained_as})
    return True


def _body(model: Model, store: Store, result: MeasureResult) -> dict[str, Any]:
    clips = [asdict(clip) for clip in result.clips]
    ages = {found.name: asdict(found.unmasked)["ages"] for found in result.retrievals}
    return {
        "main": result.main,
        "metrics": [metric.name for metric in result.metrics],
        "missing": {metric.name: metric.needs for metric in result.missing},
        "kinds": {found.name: found.kind for found in result.retrievals},
        "clips": clips,
        "ages": ages,
        "gain": asdict(result.gain),
        "cost": cost(model, _history(model.experiment, store)),
        "spec": result.spec,
        "facts": facts(),
        **commit(),
    }


def _history(experiment: Experiment, store: Store) -> Any:
    """Give the measured window of the first clip that is long enough, else of the longest."""
    shapes = experiment.backbone.geometry
    wanted = shapes.latents(shapes.frames(experiment.measure.seconds, store.fps))
    own: list[Record] = [record for record in store.records if not record.mirror]
    long = [record for record in own if record.latents >= wanted]
    record = long[0] if long else max(own, key=lambda found: found.latents)
    needs = all_needs(experiment)
    length = min(wanted, record.latents)
    window = store.window(record, 0, length, sorted(needs.rates), needs.pixels)
    return window.to(torch.device(pick_device()))
