"""`longtake bench`."""

from __future__ import annotations

import tempfile
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
    from ..tools.files import write_json

    if out is not None:
        _check_writable(out)
    _, specs = load_experiment(experiment)
    result = benches.bench(specs, data=data)
    if out is not None:
        write_json(out, result)
    o.print_result(result, benches.lines(result), as_json=as_json)


def _check_writable(out: Path) -> None:
    """Refuse, before minutes of measuring, a path that cannot be written."""
    from ..errors import UserError
    from ..tools.files import disk_errors

    if out.is_dir():
        raise UserError(f"--out {out} is a folder; the name of a file is wanted")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
