"""A short one of `tests/proofs/kills.py`: killed while starting, saving and training."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..proofs import kills


@pytest.mark.slow
def test_a_run_that_was_killed_equals_the_run_never_killed(store: Path, tmp_path: Path) -> None:
    kills.finish(store, tmp_path / "whole", steps=40)
    told = kills.chain(store, tmp_path / "killed", steps=40, kills=3, seed=kills.SEED)
    kills.check(tmp_path / "whole", tmp_path / "killed", told["reached"])
