"""Specs from and to text: Python inside, JSON in checkpoints, `--set` and `show` (design §4).

    text = dumps(experiment)
    experiment = loads(text, Experiment)
    experiment = apply_sets(experiment, ["compressor.rate=2x2x2", "train.steps=10"])
    name, experiment = load_experiment("my_experiments.py:small")

The spec of a plugin carries the plugin's name under `type`. A `SpecError` holds everything that is
wrong, one line a fault.
"""

from .convert import candidates, dumps, from_json, loads, parse, to_json
from .faults import SpecError, message
from .load import load_experiment
from .sets import apply_sets, differences

__all__ = [
    "SpecError", "apply_sets", "candidates", "differences", "dumps", "from_json",
    "load_experiment", "loads", "message", "parse", "to_json",
]  # fmt: skip
