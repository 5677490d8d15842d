"""A short one of `tests/proofs/take_kills.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..proofs import take_kills


@pytest.mark.slow
def test_takes_that_were_killed_equal_those_never_killed(tmp_path: Path) -> None:
    given = take_kills.prepare(tmp_path)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, killed):
        place.mkdir()
    take_kills.chain(whole, *given, kills=0, seed=0)
    take_kills.chain(killed, *given, kills=4, seed=take_kills.SEED)
    take_kills.check(whole, killed)
