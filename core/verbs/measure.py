"""`longtake measure`."""

from __future__ import annotations

from pathlib import Path

import attrs

from .. import edge
from ..data.store import Store
from ..device import pick_device
from ..files import write_json
from ..measure.measure import measure as measure_model
from ..measure.report import write_report
from ..measure.strips import make_strips
from ..measure.verdict import as_data, verdict
from ..progress import progress_bar
from ..registry import registry
from ..train.checkpoint import load_run, read_run, step_of
from .common import emit, find_run


def measure(run: str, data: Path, out: Path | None, sets: list[str], *, as_json: bool) -> None:
    """Measure a run on a store; write report.html and measure.json."""
    place = find_run(run)
    store = Store.open(data)
    model = load_run(place).to(pick_device())
    model = attrs.evolve(model, experiment=edge.apply_sets(model.experiment, sets))
    target = out or _default(run, place)
    with progress_bar("measure") as report:
        result = measure_model(model, store, run=run, step=_step(place), progress=report)
    found = as_data(result)
    write_json(target / "measure.json", found)
    page = write_report(result, make_strips(model, store, result), target / "report.html")
    emit(found, [*(str(line) for line in verdict(result)), f"report: {page}"], as_json=as_json)


def _default(run: str, place: Path) -> Path:
    shipped = place in registry().weights.values()
    return Path(f"measure-{run}") if shipped else place / "measure"


def _step(place: Path) -> int | None:
    checkpoint = read_run(place)[1]
    return step_of(checkpoint) if checkpoint.name.startswith("checkpoint-") else None
