"""What trains, by how much: parameters, AdamW and the learning rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import Parameter

from ..errors import UserError
from ..experiment import TrainSpec
from ..model import Model
from .stage import StageOne

BLOCK = re.compile(r"(blocks|attention)\.\d+\.|compressors\.\d+\.")


def learning_rate(spec: TrainSpec, step: int) -> float:
    """Give the learning rate of a step: linear warm-up, level, linear decay to zero."""
    warm = min(1.0, (step + 1) / max(1, spec.warmup))
    tail = spec.decay * spec.steps
    left = min(1.0, (spec.steps - step) / tail) if tail >= 1 else 1.0
    return spec.rate * warm * left


def make_optimizer(stage: StageOne, spec: TrainSpec) -> torch.optim.Optimizer:
    """Give the optimizer over all that trains; weight decay on matrices and kernels only.

    Raises:
        UserError: nothing trains (an Only-LR encoder under `trains: encoder`, say).
    """
    named = {n: p for n, p in stage.named_parameters() if p.requires_grad}
    if not named:
        raise UserError(
            f"train.trains={spec.trains}, but nothing of that has parameters: nothing would train"
        )
    if spec.optimizer == "adamw":
        return _adamw(list(named.values()), spec)
    inner = [p for n, p in named.items() if p.dim() == 2 and BLOCK.search(n)]
    chosen = {id(p) for p in inner}
    rest = [p for p in named.values() if id(p) not in chosen]
    if not inner:
        return _adamw(rest, spec)
    return MuonAdamW(inner, _adamw(rest, spec), spec)


def _adamw(parameters: Sequence[Parameter], spec: TrainSpec) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=spec.rate, betas=spec.betas)


class MuonAdamW(torch.optim.Optimizer):
    """Muon on the matrices of the blocks, AdamW on the rest, behind one interface.

    Muon's steps are scaled to the size of AdamW's, so that both share one learning rate.
    """

    def __init__(
        self, matrices: Sequence[Parameter], adamw: torch.optim.AdamW, spec: TrainSpec
    ) -> None:
        self.muon = torch.optim.Muon(
            matrices,
            lr=spec.rate,
            weight_decay=spec.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = adamw
        super().__init__([*self.muon.param_groups, *adamw.param_groups], {})
        # the same dicts, so that a learning rate set here is the one they use
        self.param_groups = [*self.muon.param_groups, *adamw.param_groups]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step both."""
        self.muon.step()
        self.adamw.step()

    def state_dict(self) -> dict[str, Any]:
        """Give the state of both."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]


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
