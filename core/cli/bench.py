"""`longtake bench`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from . import options as o

KERNELS = "kernels"


def bench(
    experiment: Annotated[
        str,
        typer.Argument(
            help="a shipped name, module:name, or file.py:name; or `kernels`",
            metavar="EXPERIMENT|kernels",
        ),
    ] = "tiny-wan-2x2x2",
    out: Annotated[Path | None, o.out_option("also write the result here, as JSON")] = None,
    data: Annotated[
        Path | None, typer.Option(help="a latent store to load from; default: one written for it")
    ] = None,
    full: Annotated[
        bool | None,
        typer.Option(
            "--full/--tiny",
            help="kernels: at real sizes, or all of it on small ones; default: full on a GPU",
        ),
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(help='kernels: an encoder such as "wan22-5b 2x2x2"; may be repeated'),
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Measure an experiment on this machine, or its kernels: each figure beside its yardstick.

    Example: longtake bench
    Example: longtake bench kernels --full --encoder "wan22-5b 2x2x2"
    """
    from ..tools.files import check_out_file, write_json

    if out is not None:
        check_out_file(out)
    if experiment == KERNELS:
        result, lines = _kernels(data, full, encoder)
    else:
        result, lines = _experiment(experiment, data, full, encoder)
    if out is not None:
        write_json(out, result)
    o.print_result(result, lines, as_json=as_json)


def _experiment(
    name: str, data: Path | None, full: bool | None, encoder: list[str] | None
) -> tuple[dict[str, Any], list[str]]:
    from .. import bench as benches
    from ..config import load_experiment

    if full is not None or encoder:
        option = "--encoder" if encoder else "--full" if full else "--tiny"
        raise UserError(f"{option} is for `longtake bench kernels`, not for an experiment")
    _, specs = load_experiment(name)
    result = benches.bench(specs, data=data)
    return result, benches.lines(result)


def _kernels(
    data: Path | None, full: bool | None, encoder: list[str] | None
) -> tuple[dict[str, Any], list[str]]:
    from ..kernel_bench import bench as kernels
    from ..tools.device import pick_device

    if data is not None:
        raise UserError("--data is for an experiment, not for `longtake bench kernels`")
    device = pick_device()
    large = device.type == "cuda" if full is None else full
    setups = kernels.chosen_setups(encoder or [], full=large)
    form = kernels.Form.of(device, full=large)
    result = kernels.kernel_bench(setups, form, device, _say)
    return result, kernels.lines(result)


def _say(name: str) -> None:
    print(f"{name} ...", file=sys.stderr, flush=True)
