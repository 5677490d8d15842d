"""`longtake.authors`: the public face for authors of plugins is whole, lazy, and all they need."""

from __future__ import annotations

import ast
import pydoc
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from longtake import authors
from longtake.core.contract.samples import sample_fit
from longtake.plugins.compressors.pool import PoolCompressor
from longtake.plugins.compressors.specs import Pool

from .test_house import HEAVY, ROOT, python

THIRD_PARTIES = sorted((ROOT / "tests" / "thirdparty").rglob("*.py"))
LIGHT = ["Plugin", "impl", "CompressorSpec", "DiTSpec", "HidingSpec", "Rate", "Geometry", "Dct"]
LIGHT += ["Experiment", "UserError", "doc", "each", "between", "unit", "named", "instance_of"]
CLASSES = [name for name in authors.__all__ if isinstance(getattr(authors, name), type)]


def test_every_name_resolves_and_dir_lists_them() -> None:
    assert dir(authors) == sorted(authors.__all__) == sorted(set(authors.__all__))
    for name in authors.__all__:
        assert getattr(authors, name) is not None, name
    with pytest.raises(AttributeError, match="has no attribute 'Compresor'"):
        authors.Compresor  # noqa: B018


def test_what_type_checkers_see_is_what_is_there() -> None:
    tree = ast.parse((ROOT / "authors.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (f".{node.module}", alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name for _, name in seen} == set(authors.__all__)
    assert seen == {(module, name) for name, module in authors._MODULES.items()}


def test_hooks_and_specs_import_no_torch() -> None:
    names = ", ".join(LIGHT)
    code = f"import sys; from longtake.authors import {names}\n"
    done = python("-c", code + f"print([m for m in {HEAVY!r} if m in sys.modules])")
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def house_imports(code: str) -> Iterator[str]:
    """The modules of longtake that code imports."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_what_shows_how_to_write_plugins_imports_from_here_alone() -> None:
    pages = [ROOT / "CONTRIBUTING.md", ROOT / "plugins" / "compressors" / "README.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    shown = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    codes = [*shown, *(path.read_text(encoding="utf-8") for path in THIRD_PARTIES)]
    ours = {m for code in codes for m in house_imports(code) if m.startswith("longtake.")}
    assert shown and len(THIRD_PARTIES) >= 3 and ours == {"longtake.authors"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_help_of_a_class_shows_what_is_ours(name: str) -> None:
    text = pydoc.render_doc(getattr(authors, name), renderer=pydoc.plaintext)
    assert len(text.splitlines()) < 300
    assert "inherited from torch" not in text and "register_forward_hook" not in text
    assert str(getattr(authors, name).__doc__).splitlines()[0] in text


def test_an_instance_still_lists_all_and_has_all() -> None:
    module = PoolCompressor(Pool(), sample_fit())
    assert {"parameters", "to", "forward", "step", "settles"} <= set(dir(module))
    assert "to" not in dir(PoolCompressor) and PoolCompressor.to is nn.Module.to


def test_it_promises_to_be_stable() -> None:
    assert "stable" in str(authors.__doc__) and "CHANGELOG" in str(authors.__doc__)
    assert "longtake.authors" in Path(ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
