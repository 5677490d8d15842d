"""The tutorial of CONTRIBUTING: its code is a compressor, and a row of the table by its name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from longtake.core.contract.compressor import check_compressor
from longtake.core.hooks import Plugin
from longtake.core.registry import import_file

from .program import run

ROOT = Path(__file__).resolve().parent.parent


def tutorial(folder: Path) -> Path:
    """The code of CONTRIBUTING's compressor as the file it says to write."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("### A compressor in 30 lines")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code, "the tutorial has no code"
    path = folder / "moments.py"
    path.write_text(code[1], encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tutorial(tmp_path)


def test_it_is_no_longer_than_it_says(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    assert len(lines) <= 30


@pytest.mark.slow
def test_it_keeps_the_law_of_compressors(file: Path) -> None:
    (record,) = import_file(file).longtake_compressors()
    assert isinstance(record, Plugin)
    check_compressor(record.load(), record.spec())


def test_every_command_finds_it_by_the_variable(
    file: Path, monkeypatch: pytest.MonkeyPatch, own_registry: None
) -> None:
    """And `table1 --add moments.py` makes it a row: see `test_table1`."""
    monkeypatch.setenv("LONGTAKE_PLUGINS", str(file))
    code, out, err = run("list", "--json")
    assert code == 0, err
    found = {p["name"]: p["distribution"] for p in json.loads(out)["plugins"]}
    assert found["moments"] == str(file)
