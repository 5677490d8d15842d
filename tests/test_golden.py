"""Golden files: the resolved JSON of every shipped experiment. `LONGTAKE_GOLDEN=write` renews."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longtake.core import config
from longtake.core.experiment import Experiment
from longtake.core.registry import registry

GOLDEN = Path(__file__).parent / "golden"


def names() -> list[str]:
    return sorted(n for n, t in registry().experiments.items() if t.startswith("longtake."))


@pytest.mark.parametrize("name", names())
def test_a_shipped_experiment_resolves_to_its_golden_file(name: str) -> None:
    found_name, experiment = config.load_experiment(name)
    assert found_name == name
    path, text = GOLDEN / f"{name}.json", config.dumps(experiment)
    if os.environ.get("LONGTAKE_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, "an experiment changed: renew on purpose"
    assert config.loads(text, Experiment) == experiment


def test_no_golden_file_is_left_of_an_experiment_that_is_gone() -> None:
    assert sorted(p.stem for p in GOLDEN.glob("*.json")) == names()
