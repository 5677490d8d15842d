"""Where plugins of others are: installed distributions, and single Python files."""

from __future__ import annotations

import importlib
import os
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType

from .hooks import GROUP

VARIABLE = "LONGTAKE_PLUGINS"


def third_parties() -> list[tuple[str, str]]:
    """Give distribution and module of every third party, by name; the first on the path counts.

    Python files that the variable names come last, under their own path.
    """
    wanted = os.environ.get(VARIABLE)
    given = None if wanted is None else [name.strip() for name in wanted.split(",")]
    files = [name for name in given or () if name.endswith(".py")]
    names = None if given is None else {_normal(name) for name in given if name}
    found: dict[str, list[tuple[str, str]]] = {}
    for dist in distributions():
        points = [p.value for p in dist.entry_points if p.group == GROUP]
        name = str(dist.metadata["Name"]) if points else ""
        if points and (names is None or _normal(name) in names):
            found.setdefault(_normal(name), [(name, value) for value in points])
    installed = [pair for _, pairs in sorted(found.items()) for pair in pairs]
    return installed + [(name, name) for name in files]


def imported(module: str) -> ModuleType:
    """Give a module by its dotted name, or by the path of its file where it ends in `.py`.

    Raises:
        Exception: whatever it raises.
    """
    if not module.endswith(".py"):
        return importlib.import_module(module)
    from .edge.source import import_file  # which imports the registry

    return import_file(Path(module))


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")
