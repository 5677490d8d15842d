"""What tests of training look at in a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from longtake.core.data.store import Store
from longtake.core.data.windows import WindowBatches, WindowSampler
from longtake.core.experiment import Experiment
from longtake.core.model import build_model, compressor_needs
from longtake.core.registry import build
from longtake.core.train.checkpoint import checkpoints
from longtake.core.train.loss import StageOne


def stage_of(experiment: Experiment, store: Path) -> StageOne:
    """A fresh stage of an experiment."""
    null = Store.open(store).null_text()
    model = build_model(experiment, adapters=True)
    return StageOne(model, build(experiment.masker), experiment.train, null)


def batches_of(experiment: Experiment, store: Path, steps: int = 8) -> WindowBatches:
    """The batches of one process."""
    opened, needs = Store.open(store), compressor_needs(experiment)
    windows = WindowSampler.of(opened, experiment.backbone.geometry, experiment.train, needs)
    return WindowBatches(opened, windows, needs, steps)


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds, by file and name: weights, average, optimizer."""
    found = {}
    for path in sorted(checkpoint.rglob("*.safetensors")):
        file = path.relative_to(checkpoint)
        found |= {f"{file}/{name}": x for name, x in load_file(path).items()}
    state = torch.load(checkpoint / "training_state" / "optimizer.pt", weights_only=True)
    return found | _leaves("optimizer", state)


def _leaves(path: str, value: Any) -> dict[str, torch.Tensor]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        parts = [_leaves(f"{path}/{key}", inner) for key, inner in items]
        return {name: leaf for part in parts for name, leaf in part.items()}
    numbers = isinstance(value, int | float | torch.Tensor)
    return {path: torch.as_tensor(value)} if numbers else {}


def same(a: Path, b: Path) -> None:
    """Two runs ended bit for bit alike: their newest checkpoints and their metrics."""
    one, two = checkpoints(a)[-1], checkpoints(b)[-1]
    assert one.name == two.name
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    for file in ("training_state/state.json", "../metrics.jsonl"):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
