"""What trains, by how much: parameters, AdamW and the learning rate."""

from __future__ import annotations

import torch

from ..experiment import TrainSpec
from ..model import Model
from .stage import StageOne


def learning_rate(spec: TrainSpec, step: int) -> float:
    """Give the learning rate of a step: linear warm-up, level, linear decay to zero."""
    warm = min(1.0, (step + 1) / max(1, spec.warmup))
    tail = spec.decay * spec.steps
    left = min(1.0, (spec.steps - step) / tail) if tail >= 1 else 1.0
    return spec.rate * warm * left


def make_optimizer(stage: StageOne, spec: TrainSpec) -> torch.optim.AdamW:
    """Give AdamW over all that trains; weight decay on matrices and kernels only."""
    trained = [p for p in stage.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=spec.rate, betas=spec.betas)


def freeze(model: Model) -> None:
    """Leave trainable what `train.trains` names.

    With `all`, the first projection stays as it is all the same: the encoder holds a copy of it.
    """
    trains = model.experiment.train.trains
    if trains == "encoder":
        model.backbone.requires_grad_(False)
    if trains == "all":
        for parameter in model.backbone.fitted():
            parameter.requires_grad_(False)
