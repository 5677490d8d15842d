"""`longtake bench`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from .. import bench as figures
from .. import config as edge
from ..errors import UserError
from ..tools.files import disk_errors, write_json
from .options import emit


def bench(experiment: str, out: Path | None, data: Path | None, *, as_json: bool) -> None:
    """Measure this machine on an experiment."""
    if out is not None:
        _writable(out)
    _, found = edge.load_experiment(experiment)
    result = figures.bench(found, data=data)
    if out is not None:
        write_json(out, result)
    emit(result, figures.lines(result), as_json=as_json)


def _writable(out: Path) -> None:
    """Refuse, before minutes of measuring, a path that cannot be written."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; the name of a file is wanted")
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out.parent).close()
