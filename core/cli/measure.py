"""`longtake measure`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from . import options as o

if TYPE_CHECKING:
    from ..data.store import Store
    from ..experiment import Experiment
    from ..measure.kept import KeptClips
    from ..measure.linear import LinearCode
    from ..measure.result import MeasureResult
    from ..model import Model


PICTURE_FRAMES = 5  # columns of the picture
UNFINISHED = "unfinished.json"  # the clips before one that failed


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
    fit: Annotated[
        Path | None,
        typer.Option(help="the training store: fits the guide `linear`, and keeps it beside RUN"),
    ] = None,
    credit: Annotated[str, typer.Option(help="the line under it; default: captions")] = "",
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Measure what the memory gives back, masked and unmasked, against floors and the ceiling.

    Of a Stage II run also the loss of the future: with memory, without, with another clip's.

    Example: longtake measure runs/first --data stores/val --fit stores/train
    """
    from ..data.store import Store
    from ..measure.compare import compare_rates, read_measure
    from ..measure.kept import KeptClips, kept_facts
    from ..measure.linear import FILE, NAME, write_linear_code
    from ..measure.measure import measure as measure_model
    from ..measure.prepare import MeasureSetup
    from ..measure.strips import make_sliders, make_strips
    from ..measure.verdict import as_data, continuation_table, verdict
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
    home = folder if o.is_shipped(place) else _run_folder(place)
    if fit is not None:
        check_out_file(home / FILE, "--fit:")
    model = load_run(place).to(pick_device())
    model = attrs.evolve(model, experiment=_changed(model.experiment, sets or []))
    checkpoint = _checkpoint(place)
    code = _linear_code(model, fit, [home, place])
    setup = MeasureSetup.build(model, store, linear=code)
    if code is not None and fit is not None:
        write_linear_code(home / FILE, code)
    kept = KeptClips(folder=folder / "kept", facts=kept_facts(setup, checkpoint))

    def stopped(result: MeasureResult) -> None:
        """Write what there is before the clip that failed."""
        summary = as_data(result)
        lines = [*map(str, verdict(result)), f"what was measured: {folder / UNFINISHED}"]
        try:
            write_json(folder / UNFINISHED, summary)
        finally:
            o.print_result(summary, lines, as_json=as_json)

    with progress_bar("measure") as report, _kept_said(kept):
        result = measure_model(
            setup, run=run, step=_step(checkpoint), progress=report, kept=kept, stopped=stopped
        )
    rates = compare_rates(result, others)
    summary = as_data(result, rates)
    lines = [*continuation_table(result), *map(str, verdict(result))]
    if kept.used:
        lines.append(f"{len(kept.used)} of these had been measured before, and were kept")
    if code is None:
        lines.append(f"{NAME}: not measured; --fit STORE fits it on the training store")
    try:
        write_json(folder / "measure.json", summary)
        page = write_report(
            result,
            Page(
                strips=make_strips(setup, result), sliders=make_sliders(setup, result), rates=rates
            ),
            folder / "report.html",
        )
        (folder / UNFINISHED).unlink(missing_ok=True)
        lines.append(f"report: {page}")
        if picture is not None:
            strips = make_strips(setup, result, clips=2, frames=PICTURE_FRAMES, names=names)
            lines.append(f"picture: {save_picture(strips, picture, credit=credit)}")
        kept.remove()
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


def _linear_code(model: Model, fit: Path | None, places: Sequence[Path]) -> LinearCode | None:
    """Fit the code of the guide `linear`, or read the one that is kept; None where none is."""
    from ..data.store import Store
    from ..measure.linear import FILE, fit_linear_code, read_linear_code
    from ..registry import build
    from ..tools.device import pick_device
    from ..tools.progress import progress_bar

    kept = next((place / FILE for place in places if (place / FILE).is_file()), None)
    if fit is None and kept is None:
        return None
    codec = build(model.experiment.backbone.codec).to(pick_device()).eval()
    if fit is not None:
        with progress_bar("fit") as report:
            return fit_linear_code(model.experiment, Store.open(fit), codec, progress=report)
    assert kept is not None  # else there was nothing to do
    return read_linear_code(kept, model.experiment, codec)


def _run_folder(place: Path) -> Path:
    """Return the folder of a run that a checkpoint of it may have been named of."""
    return place if (place / "spec.json").is_file() else place.parent


def _check_picture(store: Store, picture: Path | None, names: Sequence[str]) -> None:
    """Refuse a picture that could not be made, before anything is measured."""
    from ..errors import UserError
    from ..measure.strips import check_names
    from ..pages.picture import FORMATS

    check_names(store, names)
    if picture is not None and picture.suffix.lower() not in FORMATS:
        raise UserError(f"--picture {picture}: a picture ends in {', '.join(FORMATS)}")


def _default_folder(run: str, place: Path) -> Path:
    if place.is_file():
        return place.with_name(f"{place.stem}-measure")
    return Path(f"measure-{run}") if o.is_shipped(place) else place / "measure"


@contextmanager
def _kept_said(kept: KeptClips) -> Iterator[None]:
    """Say afterwards, where measuring does not come to its end, what is kept of it."""
    try:
        yield
    except BaseException:
        if count := kept.count():
            words = "measured clip is" if count == 1 else "measured clips are"
            told = f"{count} {words} kept in {kept.folder}: the same command goes on from there"
            print(told, file=sys.stderr)
        raise


def _checkpoint(place: Path) -> Path:
    from ..train.checkpoint import read_run

    return read_run(place)[1]


def _step(checkpoint: Path) -> int | None:
    from ..train.checkpoint import step_of

    return step_of(checkpoint) if checkpoint.name.startswith("checkpoint-") else None
