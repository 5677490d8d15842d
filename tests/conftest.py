"""What all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

INTERFACES = (
    "interfaces.backbone", "interfaces.codec", "interfaces.compressor", "interfaces.metric",
    "interfaces.retriever", "interfaces.text_encoder",
    "values.history", "values.memory", "values.text",
)  # fmt: skip
# beartype knows `Self` only in classes that it decorates whole, and jaxtyping decorates methods
CHECKER = (
    "beartype.beartype(conf=beartype.BeartypeConf(hint_overrides="
    "beartype.BeartypeHintOverrides({__import__('typing').Self: object})))"
)
# shapes of the interfaces are checked in tests only (conventions C.2); before their first import
jaxtyping.install_import_hook([f"longtake.core.{name}" for name in INTERFACES], CHECKER)

# The same examples in every run, on every worker, and in every order of tests.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

# Workers share the cores: with a pool of threads in each they wait for one another (6x slower).
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start, too

import torch  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's `&` takes away

ROOT = Path(__file__).resolve().parent.parent


class RootIsAFolder:
    """To pytest the repository root is a plain folder, whatever its name is.

    It is a package, and pytest would import its `__init__.py` by the name of the folder that
    somebody cloned or unpacked into, such as `longtake-main`, which is no name in Python.
    """

    @staticmethod
    def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        if path != ROOT:
            return None
        root: pytest.Collector = pytest.Dir.from_parent(parent, path=path)
        return root


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsAFolder())


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


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes are not checked, as for users: to see what refuses wrong ones then."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def own_registry() -> Iterator[None]:
    """What a test plugs in is gone when it ends."""
    from longtake.core.registry import registry

    registry.cache_clear()
    yield
    registry.cache_clear()
