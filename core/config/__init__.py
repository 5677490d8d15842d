"""JSON at the edge: specs are Python inside, JSON in checkpoints, `--set` and `show` (design §4).

    text = dumps(experiment)
    experiment = loads(text, Experiment)
    experiment = apply_sets(experiment, ["compressor.rate=2x2x2", "train.steps=10"])
    name, experiment = load_experiment("my_experiments.py:small")

A plugin's spec carries its plugin's name under `type`. Whatever is wrong is said at once, one line
a fault, in a `SpecError`.
"""

from .convert import candidates, dumps, from_json, loads, parse, to_json
from .faults import SpecError, message
from .load import load_experiment
from .sets import apply_sets

__all__ = [
    "SpecError", "apply_sets", "candidates", "dumps", "from_json", "load_experiment", "loads",
    "message", "parse", "to_json",
]  # fmt: skip
