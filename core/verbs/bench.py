"""`longtake bench`."""

from __future__ import annotations

from pathlib import Path

from .. import bench as figures
from .. import edge
from ..files import write_json
from .common import emit

DEFAULT = "tiny-wan-2x2x2"


def bench(out: Path | None, *, as_json: bool, experiment: str = DEFAULT) -> None:
    """Measure this machine on the embedded default."""
    _, found = edge.load_experiment(experiment)
    result = figures.bench(found)
    if out is not None:
        write_json(out, result)
    emit(result, figures.lines(result), as_json=as_json)
