"""What tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..small import make_store, small


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"), small())
