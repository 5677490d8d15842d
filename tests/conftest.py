"""What all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

INTERFACES = (
    "calls", "codec", "compressor", "fit", "history", "memory", "positions", "query", "retriever",
    "scene", "text",
)  # fmt: skip
# shapes of the interfaces are checked in tests only (conventions C.2); before their first import
install_import_hook([f"longtake.core.{name}" for name in INTERFACES], "beartype.beartype")

# Workers share the cores: with a pool of threads in each they wait for one another (6x slower).
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too

import torch  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `&` takes away

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
