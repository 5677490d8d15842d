"""The tutorial of CONTRIBUTING: its code is a compressor, and a row of the table by its name."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.core.contract.compressor import check_compressor
from longtake.core.hooks import Plugin
from longtake.core.registry import import_file

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def file(tmp_path: Path) -> Path:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("### A compressor in 30 lines")[1].split("\n## ")[0]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found, "the tutorial has no code"
    path = tmp_path / "moments.py"
    path.write_text(found[1], encoding="utf-8")
    return path


def test_it_is_no_longer_than_it_says(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    assert len(lines) <= 30


def test_it_keeps_the_law_of_compressors(file: Path) -> None:
    (record,) = import_file(file).longtake_compressors()
    assert isinstance(record, Plugin)
    check_compressor(record.load(), record.spec())


def longtake(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_every_command_finds_it_by_the_variable(file: Path) -> None:
    done = longtake("longtake", "list", "--json", LONGTAKE_PLUGINS=str(file))
    assert done.returncode == 0, done.stderr
    found = {p["name"]: p["distribution"] for p in json.loads(done.stdout)["plugins"]}
    assert found["moments"] == str(file)


@pytest.mark.slow
def test_naming_it_makes_a_row_of_the_table(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "table"
    given = ["--budget", "tiny", "--rows", "pool-2x2x2", "--seeds", "0", "--add", str(file)]
    done = longtake("longtake.experiments.table1", "--out", str(out), *given)
    assert done.returncode == 0, done.stderr
    rows = json.loads((out / "table1.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["pool-2x2x2", "moments"]
    assert rows[1]["compressor"] == {"type": "moments", "rate": "4x4x2"}
    assert rows[1]["cost"]["parameters"] > 0
