"""Read an EXPERIMENT: a shipped name, `module:name`, `file.py[:name]` or a JSON file."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UserError
from ..experiment import Experiment
from ..registry import LIST, import_file, registry
from ..tools.words import names_like
from .convert import from_json, parse
from .faults import message
from .recipe import from_recipe

EXPERIMENT = "EXPERIMENT"  # the name of what a module alone, without `:name`, stands for


def load_experiment(text: str) -> tuple[str, Experiment]:
    """Return the short name and the value of an experiment.

    `text` is a shipped name, `module:name`, `path/file.py:name` (`file.py` alone where it defines
    EXPERIMENT, or exactly one) or the path of a spec (`.json`), whose backbone's recipe fills in
    what it leaves out. The name is that of a
    module-level Experiment or of a function without arguments that returns one.

    Raises:
        UserError: in one line, whatever is wrong; failures in a user's file with file and line.
        SpecError: a JSON spec has faults, each in its line.
    """
    if text.endswith(".json"):
        return _from_json_file(Path(text))
    shipped = registry().experiments
    if text in shipped:
        return text, _from_target(shipped[text])[1]
    if text.endswith(".py") or ".py:" in text or re.fullmatch(r"[\w.]+:\w+", text):
        return _from_target(text)
    registry().check_loaded("experiments", text)
    known = names_like(text, shipped, LIST)
    raise UserError(
        f"unknown experiment {text!r}; known: {known}; your own is written module:name or "
        "path/file.py:name"
    )


def _from_json_file(path: Path) -> tuple[str, Experiment]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}") from error
    data = parse(text, where=str(path))
    return path.stem, from_recipe(from_json(data, Experiment), data)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, OSError):
        return "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
    return "it is no UTF-8 text"


def _from_target(target: str) -> tuple[str, Experiment]:
    if target.endswith(".py"):
        where, name = target, ""
    else:
        where, _, name = target.rpartition(":")
    module = _import(where)
    known = experiment_names(module)
    if not name:
        name = _single(where, known)
    if name not in vars(module):
        listed = names_like(name, known)
        raise UserError(f"{where} has no {name!r}; experiments there: {listed}")
    return name, _value(module, name, f"{where}:{name}")


def experiment_names(module: ModuleType) -> list[str]:
    """Return the names of the experiments that a module defines itself, in their order.

    Those are public values that are an Experiment, functions without required arguments that are
    annotated to return one, and whatever is called EXPERIMENT; what the module only imported does
    not count.
    """
    imported = _imported_names(module)
    names = (n for n in vars(module) if not n.startswith("_") and n not in imported)
    return [name for name in names if name == EXPERIMENT or _is_experiment(vars(module)[name])]


def _imported_names(module: ModuleType) -> set[str]:
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):
        return set()
    imports = (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))
    return {alias.asname or alias.name for node in imports for alias in node.names}


def _is_experiment(value: Any) -> bool:
    if not inspect.isfunction(value):
        return isinstance(value, Experiment)
    annotation = inspect.signature(value).return_annotation
    if isinstance(annotation, str):
        annotated = annotation.rpartition(".")[2] == Experiment.__name__
    else:
        annotated = annotation is Experiment
    return annotated and not _required_arguments(value)


def _required_arguments(function: Any) -> list[str]:
    return [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]


def _single(where: str, known: list[str]) -> str:
    if len(known) == 1 or EXPERIMENT in known:
        return EXPERIMENT if EXPERIMENT in known else known[0]
    if not known:
        raise UserError(f"{where} defines no experiment")
    raise UserError(f"{where} defines {len(known)} experiments: write {where}:{known[0]}, or "
                    f"{', '.join(known[1:])}")  # fmt: skip


def _value(module: ModuleType, name: str, where: str) -> Experiment:
    value: Any = vars(module)[name]
    if inspect.isfunction(value):
        value = _call(value, module, where)
    if not isinstance(value, Experiment):
        kind = "a class" if isinstance(value, type) else f"of type {type(value).__name__}"
        raise UserError(f"{where} is no Experiment (it is {kind})")
    return value


def _call(function: Any, module: ModuleType, where: str) -> Any:
    if required := _required_arguments(function):
        raise UserError(f"{where} takes arguments ({', '.join(required)}): it must take none")
    try:
        return function()
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise UserError(_line(error, module.__file__ or "", where)) from error


def _import(where: str) -> ModuleType:
    path = Path(where)
    if where.endswith(".py") and not path.is_file():
        raise UserError(f"{where}: there is no such file")
    try:
        return import_file(path) if where.endswith(".py") else importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(error.name + ".")):
            raise UserError(
                f"there is no module {error.name!r}; a file is written path/file.py:name"
            ) from error
        raise UserError(_line(error, str(path), where)) from error
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise UserError(_line(error, str(path), where)) from error


def _line(error: BaseException, file: str, where: str) -> str:
    """Return `file:line: what was raised`, the line being the last one in the user's own file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename or where}:{error.lineno}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _own(f.filename, file, where)]
    return (
        f"{frames[-1].filename}:{frames[-1].lineno}: {message(error)}"
        if frames
        else f"{where}: {message(error)}"
    )


def _own(filename: str, file: str, where: str) -> bool:
    if file.endswith(".py"):
        return Path(filename) == Path(file).absolute() or filename == file
    return Path(filename).with_suffix("").as_posix().endswith(where.replace(".", "/"))
