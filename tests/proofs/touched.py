"""Which modules the tests only import: a plugin of pytest, without workers.

    python -m pytest -p tests.proofs.touched

ends with the modules that have functions, none of which ran in a test (a run while importing does
not count). The suite without slow tests should name no module but those that are data.
"""

from __future__ import annotations

import ast
import inspect
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("core", "plugins", "backbones", "kernels", "experiments")
RAN: set[Path] = set()
SEEN: set[CodeType] = set()


def note(frame: FrameType, event: str, _: Any) -> None:
    """Put down the module of a function that is called for the first time."""
    code = frame.f_code
    if event != "call" or code in SEEN:
        return
    function = bool(code.co_flags & inspect.CO_OPTIMIZED)  # and no body of a module or class
    if function and importing(frame):
        return  # it may run later, too
    SEEN.add(code)
    if function:
        RAN.add(Path(code.co_filename).resolve())


def importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol() -> Iterator[None]:
    sys.setprofile(note)
    threading.setprofile(note)
    try:
        return (yield)
    finally:
        sys.setprofile(None)


def has_functions(path: Path) -> bool:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) for node in ast.walk(tree))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    for path in files:
        if path not in RAN and has_functions(path):
            terminalreporter.write_line(f"no function ran: {path.relative_to(ROOT).as_posix()}")
