"""`longtake bench`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from . import options as o

EXPERIMENT = "tiny-wan-2x2x2"
GENERATE = "generate"
KERNELS = "kernels"
PICTURES = (".svg", ".png")


def bench(
    what: Annotated[
        str,
        typer.Argument(
            help="an experiment; `generate EXPERIMENT` times the segments of a growing take; "
            "`kernels` the encoder",
            metavar="[generate] EXPERIMENT|kernels",
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
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--tiny",
            help="of `kernels`: at real sizes, or all of it on small ones; default: full on a GPU",
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(help='of `kernels`: an encoder such as "wan22-5b 2x2x2"; may be repeated'),
    ] = None,
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Measure start-up, loader, encoder and append on this machine, each beside its yardstick.

    `bench generate` makes a take and measures whether a segment costs the same as it grows.

    `bench kernels` measures the encoder beside peers and the device's limits.

    Example: longtake bench
    Example: longtake bench kernels --full --encoder "wan22-5b 2x2x2"
    """
    from ..tools.files import check_out_file

    if out is not None:
        check_out_file(out)
    kind = what if what in (GENERATE, KERNELS) else ""
    takes = {"--segments": segments, "--budget": budget, "--steps": steps}
    _refuse_others(kind, {
        "": {"--data": data},
        GENERATE: {**takes, "--picture": picture},
        KERNELS: {"--tiny" if full is False else "--full": full, "--encoder": encoder or None},
    })  # fmt: skip
    if kind != GENERATE and experiment is not None:
        raise UserError(f"bench {what} {experiment}: one experiment, or `generate` before it")
    if kind == KERNELS:
        if sets:
            raise UserError("--set is for an experiment, not for `longtake bench kernels`")
        _kernels(full, encoder or [], out, as_json=as_json)
    elif kind == GENERATE:
        if picture is not None:
            check_out_file(picture, "--picture")
            if picture.suffix not in PICTURES:
                raise UserError(f"--picture {picture}: a picture ends in {', '.join(PICTURES)}")
        counts = {name[2:]: value for name, value in takes.items() if value is not None}
        _generate(experiment or EXPERIMENT, counts, out, picture, sets, as_json=as_json)
    else:
        _stages(what, data, out, sets, as_json=as_json)


def _refuse_others(kind: str, options: Mapping[str, Mapping[str, object]]) -> None:
    """Raise UserError for an option that is of another kind of bench.

    Args:
        kind: what is measured; "" an experiment.
        options: of each kind, with what was given; None: nothing.
    """
    for owner, own in options.items():
        given = [name for name, value in own.items() if value is not None]
        if given and owner != kind:
            place = f"`longtake bench {owner}`" if owner else "`longtake bench EXPERIMENT`"
            raise UserError(f"{given[0]} goes with {place}")


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


def _kernels(full: bool | None, encoders: list[str], out: Path | None, *, as_json: bool) -> None:
    from ..kernel_bench import bench as kernels
    from ..tools.device import pick_device
    from ..tools.files import write_json

    device = pick_device()
    large = device.type == "cuda" if full is None else full
    setups = kernels.chosen_setups(encoders, full=large)
    form = kernels.Form.of(device, full=large)
    result = kernels.kernel_bench(setups, form, device, _say)
    if out is not None:
        write_json(out, result)
    o.print_result(result, kernels.lines(result), as_json=as_json)


def _say(name: str) -> None:
    print(f"{name} ...", file=sys.stderr, flush=True)
