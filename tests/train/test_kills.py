"""A short one of `tests/proofs/kills.py`: killed while starting, saving and training."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve

from ..proofs import kills


@pytest.mark.slow
def test_a_run_that_was_killed_equals_the_run_never_killed(store: Path, tmp_path: Path) -> None:
    kills.finish(store, tmp_path / "whole", steps=40)
    told = kills.chain(store, tmp_path / "killed", steps=40, kills=3, seed=kills.SEED)
    kills.check(tmp_path / "whole", tmp_path / "killed", told["reached"])


@pytest.mark.slow
def test_a_stage_two_that_was_killed_equals_the_one_never_killed(
    store: Path, tmp_path: Path
) -> None:
    kills.finish(store, tmp_path / "one", 4, kills.Stage("pretrain", "ORIGIN", 0))
    stage = evolve(kills.STAGE_TWO, origin=tmp_path / "one")
    kills.finish(store, tmp_path / "whole", 24, stage)
    told = kills.chain(store, tmp_path / "killed", 24, 3, kills.SEED, stage)
    kills.check(tmp_path / "whole", tmp_path / "killed", told["reached"])
