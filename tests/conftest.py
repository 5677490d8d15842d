"""What all tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

INTERFACES = (
    "calls", "codec", "compressor", "fit", "history", "memory", "positions", "query", "retriever",
    "scene", "text",
)  # fmt: skip
# shapes of the interfaces are checked in tests only (conventions C.2); before their first import
install_import_hook([f"longtake.core.{name}" for name in INTERFACES], "beartype.beartype")

import torch  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def video_dir() -> Path:
    """The real clips (train/, val/, manifest.csv)."""
    place = Path(os.environ.get("LONGTAKE_VIDEO", ROOT.parent / "shared" / "video"))
    if not (place / "manifest.csv").exists():
        pytest.skip(f"the real clips are not at {place}; set LONGTAKE_VIDEO")
    return place


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
