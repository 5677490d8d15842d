"""`longtake bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o


def bench(
    experiment: o.ExperimentArg = "tiny-wan-2x2x2",
    out: Annotated[Path | None, o.out_option("also write the result here, as JSON")] = None,
    data: Annotated[
        Path | None, typer.Option(help="a latent store to load from; default: one written for it")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Measure start-up, loader, encoder and append on this machine, each beside its yardstick.

    Example: longtake bench
    """
    from .. import bench as benches
    from ..config import load_experiment
    from ..tools.files import check_out_file, write_json

    if out is not None:
        check_out_file(out)
    _, specs = load_experiment(experiment)
    result = benches.bench(specs, data=data)
    if out is not None:
        write_json(out, result)
    o.print_result(result, benches.lines(result), as_json=as_json)
