"""The house rules of design §1: floors, links, sizes, doors that stay light."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import longtake
from longtake.core import hooks
from longtake.core.interfaces.compressor import pad_to

from .conftest import INTERFACES

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "plugins", "backbones", "kernels", "experiments")
BELOW = {
    "core": set(),
    "kernels": set(),
    "plugins": {"core", "kernels"},
    "backbones": {"core", "kernels"},
    "experiments": {"core", "plugins", "backbones"},
    "__init__": {"core", "plugins", "backbones"},
    "authors": {"core", "plugins", "backbones"},
    "__main__": {"core", "plugins", "backbones", "kernels", "experiments", "__init__"},
}
HEAVY = ("torch", "diffusers", "transformers", "torchmetrics", "triton")
FILES = [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]
DOORS = [ROOT / "__init__.py", ROOT / "__main__.py", ROOT / "authors.py"]
SOURCES = [p for p in (*DOORS, *FILES) if p.exists()]
HOOKS = [name for name in vars(hooks) if name.startswith("longtake_")]

NOTHING: list[str] = []


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Line and absolute name of everything that a file imports, as `longtake.…` if ours."""
    package = ("longtake", *path.relative_to(ROOT).parts[:-1])
    result: list[tuple[int, str]] = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            result += ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            result += ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
    return tuple(result)


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else path.stem


def test_imports_run_down() -> None:
    def wrong(path: Path) -> Iterator[str]:
        room = room_of(path)
        for line, name in imports(path):
            first, *rest = name.split(".")
            target = rest[0] if rest and rest[0] in ROOMS else "__init__"
            if first == "longtake" and rest and target not in BELOW[room] | {room}:
                yield f"{path}:{line} imports {name}: {room} must not see {target}"

    assert [line for path in SOURCES for line in wrong(path)] == NOTHING


def test_imports_of_the_house_are_relative() -> None:
    def wrong(path: Path) -> Iterator[str]:
        for node in ast.walk(tree(path)):
            absolute = isinstance(node, ast.ImportFrom) and not node.level and node.module or ""
            plain = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in [absolute, *plain]:
                if name.split(".")[0] in ("longtake", *ROOMS):
                    yield f"{path}:{node.lineno}: {name}"

    assert [line for path in SOURCES for line in wrong(path)] == NOTHING


def test_lower_floors_name_no_upper_module() -> None:
    def wrong(path: Path) -> Iterator[str]:
        room = room_of(path)
        above = {other for other in ROOMS if other not in BELOW[room] | {room}}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = re.match(r"longtake\.(\w+)[\w.]*(:\w+)?$", node.value)
                if named and named[1] in above:
                    yield f"{path}:{node.lineno}: {node.value}"

    assert [line for path in FILES for line in wrong(path)] == NOTHING


def modules_of(path: Path) -> set[str]:
    """Give the files of the house that a file imports, wherever in it and for whatever."""
    found = set()
    for _, name in imports(path):
        parts = tuple(name.split("."))[1:] if name.startswith("longtake.") else ()
        for end in (len(parts), len(parts) - 1):
            here = ROOT.joinpath(*parts[:end])
            file = next(
                (
                    p
                    for p in (here.with_suffix(".py"), here / "__init__.py")
                    if end > 0 and p.is_file()
                ),
                None,
            )
            if file is not None:
                found.add(file.relative_to(ROOT).as_posix())
                break
    return found - {path.relative_to(ROOT).as_posix()}


def test_no_files_import_each_other_in_a_circle() -> None:
    seen = {path.relative_to(ROOT).as_posix(): modules_of(path) for path in FILES}
    try:
        order = tuple(TopologicalSorter(seen).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' imports '.join(reversed(error.args[1]))}")
    assert len(order) >= len(FILES)
    assert sum(map(len, seen.values())) > len(FILES), "imports are not seen"


def test_every_module_is_imported() -> None:
    """Those that no test asks for, too."""
    for path in SOURCES:
        *parts, last = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(["longtake", *parts, *([last] if last != "__init__" else [])])
        assert importlib.import_module(name).__name__ == name


def test_shapes_are_checked_in_tests() -> None:
    """A move of a module must not turn the checks of the interfaces off (conftest)."""
    for name in INTERFACES:
        assert importlib.util.find_spec(f"longtake.core.{name}"), f"{name} is no module"
    with pytest.raises(TypeCheckError):
        pad_to(torch.zeros(1, 2), 4, 4)  # which are no latents


def test_kernels_hides_no_package() -> None:
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would hide Hugging Face's kernels"


def test_every_other_room_is_a_package() -> None:
    for path in FILES:
        if room_of(path) != "kernels":
            assert (path.parent / "__init__.py").exists(), path.parent


def test_src_holds_only_relative_links() -> None:
    if not (ROOT / "src").exists():
        pytest.skip("an sdist has no links")
    assert [p.name for p in (ROOT / "src").iterdir()] == ["longtake"]
    for link in (ROOT / "src" / "longtake").iterdir():
        if link.name == "__pycache__":
            continue
        assert link.is_symlink(), f"{link.name} is no link"
        assert os.readlink(link) == f"../../{link.name}"
        assert link.exists(), f"{link.name} leads nowhere"


def test_links_and_wheel_hold_the_same() -> None:
    if not (ROOT / "src").exists():
        pytest.skip("an sdist has no links")
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = config["tool"]["hatch"]["build"]["targets"]["wheel"]
    links = {p.name for p in (ROOT / "src" / "longtake").iterdir()} - {"__pycache__"}
    assert set(wheel["only-include"]) == links
    assert {*ROOMS, "__init__.py", "__main__.py", "authors.py", "py.typed"} <= links


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(hooks, name)), f"{name} has no docstring"
    page = ROOT / "CONTRIBUTING.md"
    assert page.exists(), "CONTRIBUTING.md is missing"
    assert name in page.read_text(encoding="utf-8"), f"CONTRIBUTING.md has no line on {name}"


def test_hooks_are_the_kinds_and_the_names() -> None:
    named = {"experiments", "weights", "geometries"}
    assert {n.removeprefix("longtake_") for n in HOOKS} == {k + "s" for k in hooks.KINDS} | named


LIGHT = """
import sys
from longtake.__main__ import main

for words in (["--help"], ["list"], ["list", "--json"], ["cache", "-h"]):
    sys.argv = ["longtake", *words]
    try:
        main()
    except SystemExit as ended:
        assert ended.code in (None, 0), words
    print(words, [name for name in HEAVY if name in sys.modules], file=sys.stderr)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, with longtake where these tests found it."""
    place = str(Path(longtake.__file__).parent.parent)
    path = os.pathsep.join([place, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": path, "LONGTAKE_PLUGINS": ""}, check=False,
    )  # fmt: skip


def test_the_door_stays_light() -> None:
    done = python("-c", f"HEAVY = {HEAVY!r}\n{LIGHT}")
    assert done.returncode == 0, done.stderr
    assert [line.endswith(" []") for line in done.stderr.splitlines()] == [True] * 4, done.stderr


def test_bad_input_is_one_line_and_exit_2() -> None:
    done = python("-m", "longtake", "show", "tiny-wan-2x2x2", "--set", "train.stepz=1")
    assert done.returncode == 2 and done.stdout == ""
    said = "longtake: train.stepz: unknown field; did you mean steps?"
    assert done.stderr.startswith(said) and len(done.stderr.splitlines()) == 1, done.stderr


def test_every_verb_shows_an_example() -> None:
    from longtake.__main__ import app

    for command in app.registered_commands:
        text = inspect.getdoc(command.callback) if command.callback else ""
        assert text and "Example: longtake " in text, command.name
