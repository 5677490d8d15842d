"""One run of a table: train a row with a seed, measure it, and keep what the table needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve, frozen

from ...core.data.cache import cache
from ...core.data.record import Record
from ...core.data.store import Store
from ...core.device import pick_device
from ...core.edge import to_json
from ...core.errors import UserError
from ...core.experiment import Experiment
from ...core.files import read_json, write_json
from ...core.grid import Rate
from ...core.measure.measure import measure
from ...core.measure.quality import Kept
from ...core.measure.result import MeasureResult
from ...core.model import Model, all_needs
from ...core.progress import progress_bar
from ...core.train.checkpoint import load_run, with_weights
from ...core.train.pretrain import pretrain
from ...core.train.run import differences
from ..gpu_steps.facts import commit, facts
from ..gpu_steps.training import curve
from .budget import Budget, masker
from .cost import cost, race
from .reader import reader, teach, trained
from .rows import Row
from .strips import save_strip

FORMAT = 2
WHAT = "result of one run of a table"


@frozen(kw_only=True)
class Bench:
    """Where a table's work lies.

    Attributes:
        out: folder of the table; `stores`, `reader`, `runs` and `measured` lie in it.
        videos: folder with `train` and `val`.
    """

    out: Path
    videos: Path
    budget: Budget

    @property
    def reader(self) -> Path:
        """The run of the DiT that all rows share."""
        return self.out / "reader"

    def experiment(self, row: Row, seed: int) -> Experiment:
        """Give the experiment of a row and a seed, on the shared DiT where that is trained."""
        found, weights = self.budget.experiment(row, seed), trained(self.budget, self.reader)
        return found if weights is None else with_weights(found, weights)

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
        """Give what was measured, or None where that is still to come.

        Raises:
            UserError: it is of another spec: another budget, or an older version's row.
        """
        path = self.result(row, seed)
        if not path.exists():
            return None
        found = dict(read_json(path, WHAT))
        odd = differences(found.get("spec"), to_json(self.experiment(row, seed)))
        if found.get("format") != FORMAT or odd:
            was = "; ".join(f"{key} was {old}, is {new}" for key, old, new in odd[:3])
            raise UserError(f"{path} is of another table ({was or 'older'}): name another --out")
        return found


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
    """Train and measure one run, going on where it stopped; False if it was stopped again.

    The DiT that all rows share is trained first.
    """
    if not teach(bench.budget, bench.store("train"), bench.reader):
        return False
    experiment, out = bench.experiment(row, seed), bench.run(row, seed)
    with progress_bar(out.name) as report:
        trained = pretrain(experiment, bench.store("train"), out, resume=True, progress=report)
    if trained.stopped:
        return False
    model, store, kept = load_run(out).to(pick_device()), Store.open(bench.store("val")), Kept()
    asked = alike(model)
    with progress_bar(f"measure {out.name}") as report:
        result = measure(asked, store, run=out.name, keep=kept, progress=report)
    save_strip(bench.out / "strips" / f"{out.name}.png", model, store, result, kept)
    body = {"row": row.name, "title": row.title, "seed": seed, **_body(model, store, result)}
    trained_as = {
        "reader": curve(bench.reader, bench.budget.reader_steps, reader(bench.budget)),
        "training": curve(out, trained.step, experiment),
    }
    write_json(bench.result(row, seed), {"format": FORMAT, **body, **trained_as})
    return True


def alike(model: Model) -> Model:
    """Give the model to be measured as every other row is: Ω anywhere, in the control, too."""
    return evolve(model, experiment=evolve(model.experiment, masker=masker()))


def paces(bench: Bench, rows: Sequence[Row]) -> dict[str, float]:
    """Give the seconds that the encoder of each trained row takes, all in turn on one machine."""
    store, entries = Store.open(bench.store("val")), {}
    for row in rows:
        runs = [run for seed in bench.budget.seeds if (run := bench.run(row, seed)).is_dir()]
        if runs:
            model = load_run(runs[0]).to(pick_device())
            entries[row.name] = (model, _history(model.experiment, store))
    return race(entries)


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
        "spec": to_json(model.experiment),
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
