"""Python files and modules that hold experiments."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ..experiment import Experiment

CHIEF = "EXPERIMENT"  # a module's own value of this name is what the module alone stands for


def import_file(path: Path) -> ModuleType:
    """Give the module of a Python file, run with its folder importable, as Python itself does.

    Raises:
        Exception: whatever the file raises.
    """
    full = path.absolute()
    name = f"_longtake_{hashlib.sha256(str(full).encode()).hexdigest()[:12]}_{full.stem}"
    found = importlib.util.spec_from_file_location(name, full)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    sys.path.insert(0, str(full.parent))
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(full.parent))
    return module


def experiments_in(module: ModuleType) -> list[str]:
    """Give the names of the experiments that a module defines itself, in their order.

    Those are public values that are an Experiment, functions of no needed argument that are
    annotated to return one, and whatever is called EXPERIMENT; what the module only imported does
    not count.
    """
    imported = _imported(module)
    names = (n for n in vars(module) if not n.startswith("_") and n not in imported)
    return [name for name in names if name == CHIEF or _is_one(vars(module)[name])]


def _is_one(value: Any) -> bool:
    if not inspect.isfunction(value):
        return isinstance(value, Experiment)
    said = inspect.signature(value).return_annotation
    named = said.rpartition(".")[2] == Experiment.__name__ if isinstance(said, str) else False
    return not needed_by(value) and (said is Experiment or named)


def needed_by(function: Any) -> list[str]:
    """Give the arguments that a call of a function must name."""
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def _imported(module: ModuleType) -> set[str]:
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):
        return set()
    imports = (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))
    return {alias.asname or alias.name for node in imports for alias in node.names}
