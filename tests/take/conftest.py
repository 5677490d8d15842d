"""What tests of takes share."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.core.take.take import Take

from .kit import TWO, begun, runs


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Take:
    """A take of two sections, which no test changes."""
    take = begun(tmp_path_factory.mktemp("takes") / "whole", run)
    for _ in take.run(list(TWO)):
        pass
    return take
