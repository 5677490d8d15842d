"""`longtake bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from . import options as o

EXPERIMENT = "tiny-wan-2x2x2"
GENERATE = "generate"
PICTURES = (".svg", ".png")


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="an experiment; `generate EXPERIMENT` times the segments of a growing take",
            metavar="[generate] EXPERIMENT",
        ),
    ] = EXPERIMENT,
    experiment: Annotated[str | None, typer.Argument(hidden=True)] = None,
    out: Annotated[Path | None, o.out_option("also write the result here, as JSON")] = None,
    data: Annotated[
        Path | None, typer.Option(help="a latent store to load from; default: one written for it")
    ] = None,
    segments: Annotated[
        int | None, typer.Option(help="of `generate`: segments of the take, default 60")
    ] = None,
    budget: Annotated[
        int | None, typer.Option(help="of `generate`: segments that memory holds, default 20")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="of `generate`: sampling steps a segment, default 4")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="of `generate`: a chart by segment, .svg or .png")
    ] = None,
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Measure start-up, loader, encoder and append on this machine, each beside its yardstick.

    `bench generate` makes a take and measures whether a segment costs the same as it grows.

    Example: longtake bench
    """
    from ..tools.files import check_out_file

    if out is not None:
        check_out_file(out)
    takes = {"--segments": segments, "--budget": budget, "--steps": steps}
    if what == GENERATE:
        if data is not None:
            raise UserError("--data: `bench generate` reads no store; leave it out")
        if picture is not None:
            check_out_file(picture, "--picture")
            if picture.suffix not in PICTURES:
                raise UserError(f"--picture {picture}: a picture ends in {', '.join(PICTURES)}")
        counts = {name[2:]: value for name, value in takes.items() if value is not None}
        _generate(experiment or EXPERIMENT, counts, out, picture, sets, as_json=as_json)
        return
    given = [name for name, value in (takes | {"--picture": picture}).items() if value is not None]
    if given:
        raise UserError(f"{given[0]} goes with `longtake bench generate`")
    if experiment is not None:
        raise UserError(f"bench {what} {experiment}: one experiment, or `generate` before it")
    _stages(what, data, out, sets, as_json=as_json)


def _stages(
    experiment: str, data: Path | None, out: Path | None, sets: list[str] | None, *, as_json: bool
) -> None:
    from .. import bench as benches
    from ..tools.files import write_json

    _, changed = o.read_experiment(experiment, sets)
    result = benches.bench(changed.spec, data=data)
    if out is not None:
        write_json(out, result)
    o.print_result(result, benches.lines(result), as_json=as_json)


def _generate(
    experiment: str, counts: dict[str, int], out: Path | None, picture: Path | None,
    sets: list[str] | None, *, as_json: bool,
) -> None:  # fmt: skip
    from ..bench_generate import bench_generate, lines, save_chart
    from ..tools.files import write_json
    from ..tools.progress import progress_bar

    _, changed = o.read_experiment(experiment, sets)
    with progress_bar("segment") as report:
        result = bench_generate(changed.spec, **counts, progress=report)
    if out is not None:
        write_json(out, result)
    told = lines(result)
    if picture is not None:
        told.append(f"picture: {save_chart(result, picture)}")
    o.print_result(result, told, as_json=as_json)
