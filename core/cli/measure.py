"""`longtake measure`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from . import options as o

if TYPE_CHECKING:
    from ..data.store import Store
    from ..experiment import Experiment


PICTURE_FRAMES = 5  # columns of the picture


def measure(
    run: o.RunArg,
    data: o.Data,
    out: Annotated[Path | None, o.out_option("folder for report.html; default RUN/measure")] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(help="an earlier measure to compare rates with; may be repeated"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="also write one picture of frames, .jpg or .png")
    ] = None,
    clips: Annotated[str, typer.Option(help="names of its clips, separated by commas")] = "",
    credit: Annotated[str, typer.Option(help="the line under it; default: captions")] = "",
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Measure what the memory gives back, masked and unmasked, against floors and the ceiling.

    Example: longtake measure runs/first --data stores/val --beside runs/other
    """
    from ..data.store import Store
    from ..measure.compare import compare_rates, read_measure
    from ..measure.measure import measure as measure_model
    from ..measure.prepare import MeasureSetup
    from ..measure.strips import make_sliders, make_strips
    from ..measure.verdict import as_data, verdict
    from ..pages.picture import save_picture
    from ..pages.report import Page, write_report
    from ..tools.device import pick_device
    from ..tools.files import check_out_file, check_out_folder, write_json
    from ..tools.progress import progress_bar
    from ..train.checkpoint import load_run

    names = [name.strip() for name in clips.split(",") if name.strip()]
    place = o.find_run(run)
    store = Store.open(data)
    others = [read_measure(other) for other in beside or []]
    _check_picture(store, picture, names)
    folder = out or _default_folder(run, place)
    check_out_folder(folder)
    if picture is not None:
        check_out_file(picture, "--picture")
    model = load_run(place).to(pick_device())
    model = attrs.evolve(model, experiment=_changed(model.experiment, sets or []))
    setup = MeasureSetup.build(model, store)
    with progress_bar("measure") as report:
        result = measure_model(setup, run=run, step=_step(place), progress=report)
    rates = compare_rates(result, others)
    summary = as_data(result, rates)
    lines = [*map(str, verdict(result))]
    try:
        write_json(folder / "measure.json", summary)
        page = write_report(
            result,
            Page(
                strips=make_strips(setup, result), sliders=make_sliders(setup, result), rates=rates
            ),
            folder / "report.html",
        )
        lines.append(f"report: {page}")
        if picture is not None:
            strips = make_strips(setup, result, clips=2, frames=PICTURE_FRAMES, names=names)
            lines.append(f"picture: {save_picture(strips, picture, credit=credit)}")
    finally:  # whatever happens to the disk meanwhile, what was measured is not lost
        o.print_result(summary, lines, as_json=as_json)


def _changed(experiment: Experiment, sets: Sequence[str]) -> Experiment:
    """Return a run's experiment with changes; UserError for another backbone than it trained on."""
    from ..config import change
    from ..errors import UserError

    changed = change(experiment, sets)
    if changed.swap is not None:
        raise UserError(
            f"--set backbone={changed.swap.backbone}: a run is measured on the backbone that it "
            "was trained on"
        )
    try:
        changed.spec.backbone.check_reading(experiment.backbone)
    except ValueError as error:
        raise UserError(f"--set {error}") from error
    if changed.spec.compressors != experiment.compressors:
        raise UserError("--set compressors: a run is measured with the memory that it trained")
    return changed.spec


def _check_picture(store: Store, picture: Path | None, names: Sequence[str]) -> None:
    """Refuse a picture that could not be made, before anything is measured."""
    from ..errors import UserError
    from ..measure.strips import check_names
    from ..pages.picture import FORMATS

    check_names(store, names)
    if picture is not None and picture.suffix.lower() not in FORMATS:
        raise UserError(f"--picture {picture}: a picture ends in {', '.join(FORMATS)}")


def _default_folder(run: str, place: Path) -> Path:
    return Path(f"measure-{run}") if o.is_shipped(place) else place / "measure"


def _step(place: Path) -> int | None:
    from ..train.checkpoint import read_run, step_of

    checkpoint = read_run(place)[1]
    return step_of(checkpoint) if checkpoint.name.startswith("checkpoint-") else None
