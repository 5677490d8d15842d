"""`kill -9` at any moment, then `--resume latest`, is the run that was never killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longtake.core.train.checkpoint import checkpoints

from .runs import same

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_a_run_killed_twenty_times_equals_the_run_never_killed(store: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.train.killed", str(store), str(tmp_path), "7"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told["reached"]) == 20 and told["reached"] == sorted(told["reached"])
    assert len(set(told["reached"])) > 5, "the kills must fall at many steps"
    assert sum(map(bool, told["halves"])) >= 3, "some kills must fall into a write"
    same(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*.part")), "what kills leave is cleared"
    assert len(checkpoints(tmp_path / "killed")) == 2
