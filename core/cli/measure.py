"""`longtake measure`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs
from attrs import frozen

from .. import config as edge
from ..data.store import Store
from ..errors import UserError
from ..measure.compare import Side, by_rate, read_side
from ..measure.measure import measure as measure_model
from ..measure.quality import Kept
from ..measure.result import MeasureResult
from ..measure.strips import check_names, make_scrubs, make_strips
from ..measure.verdict import as_data, verdict
from ..model import Model
from ..pages.picture import FORMATS, save_picture
from ..pages.report import write_report
from ..registry import registry
from ..tools.device import pick_device
from ..tools.files import write_json
from ..tools.progress import progress_bar
from ..train.checkpoint import load_run, read_run, step_of
from .options import emit, find_run


@frozen(kw_only=True)
class PictureOptions:
    """A picture to write beside the report.

    Attributes:
        path: where to; None: no picture.
        clips: names of the clips to show; none: two, the worst and the best.
        credit: the line under it; "": the clips' names and captions.
        frames: columns.
    """

    path: Path | None = None
    clips: Sequence[str] = ()
    credit: str = ""
    frames: int = 5

    @classmethod
    def of(cls, path: Path | None, clips: str, credit: str) -> PictureOptions:
        """Return the options as they are typed: names of clips are separated by commas."""
        names = [name.strip() for name in clips.split(",") if name.strip()]
        return cls(path=path, clips=names, credit=credit)


def measure(
    run: str,
    data: Path,
    out: Path | None,
    sets: list[str],
    *,
    beside: Sequence[Path] = (),
    picture: PictureOptions | None = None,
    as_json: bool,
) -> None:
    """Measure a run on a store; write report.html and measure.json."""
    picture = picture or PictureOptions()
    place = find_run(run)
    store = Store.open(data)
    sides = [read_side(other) for other in beside]
    _check(store, picture)
    model = load_run(place).to(pick_device())
    model = attrs.evolve(model, experiment=edge.apply_sets(model.experiment, sets))
    target = out or _default(run, place)
    kept: Kept = {}
    with progress_bar("measure") as report:
        step = _step(place)
        result = measure_model(model, store, run=run, step=step, progress=report, keep=kept)
    written = _write(model, store, result, sides, target, kept)
    if picture.path is not None:
        written.append(f"picture: {_picture(model, store, result, picture, picture.path, kept)}")
    found = as_data(result, by_rate(result, sides))
    emit(found, [*(str(line) for line in verdict(result)), *written], as_json=as_json)


def _check(store: Store, picture: PictureOptions) -> None:
    """Refuse a picture that could not be made, before anything is measured."""
    check_names(store, picture.clips)
    if picture.path is not None and picture.path.suffix.lower() not in FORMATS:
        raise UserError(f"--picture {picture.path}: a picture ends in {', '.join(FORMATS)}")


def _write(
    model: Model,
    store: Store,
    result: MeasureResult,
    sides: Sequence[Side],
    target: Path,
    kept: Kept,
) -> list[str]:
    rates = by_rate(result, sides)
    write_json(target / "measure.json", as_data(result, rates))
    page = write_report(
        result,
        make_strips(model, store, result, kept=kept),
        target / "report.html",
        scrubs=make_scrubs(model, store, result, kept=kept),
        rates=rates,
    )
    return [f"report: {page}"]


def _picture(
    model: Model,
    store: Store,
    result: MeasureResult,
    picture: PictureOptions,
    path: Path,
    kept: Kept,
) -> Path:
    strips = make_strips(
        model, store, result, clips=2, frames=picture.frames, names=picture.clips, kept=kept
    )
    return save_picture(strips, path, credit=picture.credit)


def _default(run: str, place: Path) -> Path:
    shipped = place in registry().weights.values()
    return Path(f"measure-{run}") if shipped else place / "measure"


def _step(place: Path) -> int | None:
    checkpoint = read_run(place)[1]
    return step_of(checkpoint) if checkpoint.name.startswith("checkpoint-") else None
