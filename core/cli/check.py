"""`longtake check`."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o


def check(
    plugin: Annotated[
        str,
        typer.Argument(help="a plugin's name, or a Python file of some", metavar="NAME|FILE.py"),
    ],
    sets: o.Sets = None,
    as_json: o.Json = False,
) -> None:
    """Check a plugin, or all of a file: its contract, two training steps and a measurement.

    A line for each fault, and exit code 1; without any, a line that says what was checked.

    Example: longtake check moments.py
    """
    import attrs

    from ..check import check_named
    from ..tools.progress import progress_bar

    with progress_bar("check") as report:
        results = check_named(plugin, sets or [], report)
    data = {"plugins": [attrs.asdict(result) for result in results]}
    o.print_result(data, [line for one in results for line in one.lines()], as_json=as_json)
    if any(result.faults for result in results):
        raise typer.Exit(1)
