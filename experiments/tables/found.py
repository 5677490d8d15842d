"""Which rows and seeds of a table are measured, whatever the call that asks was told to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.edge import SpecError, from_json
from ...core.files import read_json
from ...core.spec import CompressorSpec
from .rows import Row, rows
from .work import WHAT, Bench

Runs = list[dict[str, Any]]


def measured(bench: Bench, chosen: Sequence[Row]) -> list[tuple[Row, Runs]]:
    """Give every row that is measured with its runs, one a seed: known rows, then users' own.

    Rows of other calls' `--add` are taken in from what they wrote, where their plugin is at hand.

    Raises:
        UserError: a result is of another spec.
    """
    budget = bench.budget
    known = rows(budget.backbone.geometry, budget.history)
    named: dict[str, Row] = {}
    for row in (*known, *chosen, *_others(bench)):
        named.setdefault(row.name, row)
    found = [(row, _runs(bench, row)) for row in named.values()]
    return [(row, runs) for row, runs in found if runs]


def _runs(bench: Bench, row: Row) -> Runs:
    ends = [path.stem.removeprefix(f"{row.name}-") for path in _files(bench)]
    seeds = sorted(int(end) for end in ends if end.isdigit())
    return [run for seed in seeds if (run := bench.read(row, seed)) is not None]


def _files(bench: Bench) -> list[Path]:
    return sorted((bench.out / "measured").glob("*.json"))


def _others(bench: Bench) -> list[Row]:
    """Give the rows of results, as they say themselves."""
    found = []
    for path in _files(bench):
        data = read_json(path, WHAT)
        try:
            spec = from_json(data["spec"]["compressors"][0], CompressorSpec)
        except (KeyError, IndexError, SpecError):
            continue  # its plugin is not at hand, or it is of an older version
        found.append(Row(name=data["row"], title=data.get("title", data["row"]), compressor=spec))
    return found
