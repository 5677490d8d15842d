"""Specs from and to text: Python inside, JSON in checkpoints, `--set` and `show` (design §4).

    text = dumps(experiment)
    experiment = loads(text, Experiment)
    experiment = apply_sets(experiment, ["compressor.rate=2x2x2", "train.steps=10"])
    experiment = on_backbone(experiment, "wan22-5b")
    name, experiment = load_experiment("my_experiments.py:small")

The spec of a plugin carries the plugin's name under `type`. A `SpecError` holds everything that is
wrong, one line a fault.
"""

from .convert import candidates, dumps, from_json, hints, identity, loads, parse, to_json
from .faults import SpecError, message
from .load import load_experiment
from .recipe import Swap, from_recipe, on_backbone, origins
from .sets import Changed, apply_sets, change, differences

__all__ = [
    "Changed", "SpecError", "Swap", "apply_sets", "candidates", "change", "differences", "dumps",
    "from_json", "from_recipe", "hints", "identity", "load_experiment", "loads", "message",
    "on_backbone", "origins", "parse", "to_json",
]  # fmt: skip
