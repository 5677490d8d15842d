"""Tables on the terminal for `longtake list` and `longtake show`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

PIPE_WIDTH = 200


def print_plugins(data: Mapping[str, Any]) -> None:
    """Print what `list_plugins` gave."""
    console = _console()
    plugins = _table(["kind", "name", "summary", "from"])
    for row in data["plugins"]:
        plugins.add_row(row["kind"], row["name"], row["summary"], row["distribution"])
    console.print(plugins)
    experiments = _table(["experiment", "weights", "where", "from"])
    for row in data["experiments"]:
        ships = "ship with it" if row["weights"] else ""
        experiments.add_row(row["name"], ships, row["target"], row["distribution"])
    console.print(experiments)
    for line in data["broken"]:
        console.print(f"not loaded: {line}", soft_wrap=True)


def print_show(data: Mapping[str, Any], *, fields: bool = False) -> None:
    """Print what `show` gave: JSON, context lengths, and with `fields` what each field means."""
    console = _console()
    print(json.dumps(data["experiment"], indent=2, ensure_ascii=False), flush=True)
    if fields:
        console.print(_field_table(data["fields"]))
    for title, table in [_context_table(data["context"]), *map(_rate_table, data["rates"])]:
        console.print(title, soft_wrap=True)
        console.print(table)


def _console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _table(columns: Sequence[str], *, numbers: int = 0) -> Table:
    """Give a table whose last `numbers` columns are figures."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        right = index >= len(columns) - numbers
        table.add_column(column, justify="right" if right else "left", no_wrap=right)
    return table


def _field_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(["field", "value", "meaning"])
    for row in rows:
        value = json.dumps(row["value"], ensure_ascii=False) if "value" in row else ""
        table.add_row(row["path"], value, row["doc"])
    return table


def _context_table(data: Mapping[str, Any]) -> tuple[str, Table]:
    title = f"Memory tokens at {data['width']}×{data['height']}, {data['fps']:g} fps"
    names = [part["type"] for part in data["rows"][0]["compressors"]]
    each = names if len(names) > 1 else []
    columns = ["history", "latent frames", "uncompressed", *each, "memory"]
    table = _table(columns, numbers=len(columns) - 1)
    for row in data["rows"]:
        parts = [_count(part) for part in row["compressors"]] if each else []
        cells = [f"{row['latents']:,}", f"{row['uncompressed']:,}", *parts, _count(row)]
        table.add_row(f"{row['seconds']} s", *cells)
    return title, table


def _count(length: Mapping[str, Any]) -> str:
    return f"{'' if length['exact'] else '≤ '}{length['tokens']:,}"


def _rate_table(data: Mapping[str, Any]) -> tuple[str, Table]:
    title = (
        f"{data['geometry']}: tokens of {data['seconds']:g} s at {data['width']}×{data['height']}, "
        f"{data['fps']:g} fps ({data['latents']} latent frames), floor / ceil in space"
    )
    table = _table(["rate", "paper: T/r frames", "ours: 1 + ⌈(T−1)/r⌉"], numbers=2)
    for row in data["rows"]:
        table.add_row(row["rate"], _pair(row["paper"]), _pair(row["ours"]))
    return title, table


def _pair(counts: Mapping[str, int]) -> str:
    floor, ceil = counts["floor"], counts["ceil"]
    return f"{floor:,}" if floor == ceil else f"{floor:,} / {ceil:,}"
