"""Threads that wait for each other sleep, unless the user says otherwise; torch is told in time."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from longtake.core.tools.threads import SAID, WAITING, let_waiting_threads_sleep

from ..program import python_path, run

PROGRAM = """
import sys
from longtake import __main__ as program
assert "torch" not in sys.modules
sys.argv = ["longtake", "list"]
try:
    program.main()
except SystemExit as ended:
    assert ended.code == 0
assert "torch" not in sys.modules
import torch
"""


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SAID:
        monkeypatch.setenv(name, "")  # so that whatever is set comes back behind the test
        monkeypatch.delenv(name)


def test_the_program_says_so_before_anything_else() -> None:
    assert run("list")[0] == 0
    assert os.environ[WAITING] == "PASSIVE"


@pytest.mark.parametrize("name", SAID)
def test_what_users_say_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    let_waiting_threads_sleep()
    assert {key: os.environ.get(key) for key in SAID} == {key: None for key in SAID} | {name: "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="how GNU's OpenMP tells what it does")
@pytest.mark.parametrize(
    ("said", "rounds"),
    [
        ({}, 0),
        pytest.param({WAITING: "ACTIVE"}, 30_000_000_000, marks=pytest.mark.slow),
    ],
)
def test_openmp_hears_it(said: dict[str, str], rounds: int) -> None:
    env = {**os.environ, **said, "PYTHONPATH": python_path(), "OMP_DISPLAY_ENV": "verbose"}
    words = [sys.executable, "-c", PROGRAM]
    told = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stderr
    if "GOMP_SPINCOUNT" not in told:
        pytest.skip("torch has another OpenMP here")
    assert f"GOMP_SPINCOUNT = '{rounds}'" in told
