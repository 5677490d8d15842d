"""What trains and by how much: parameters, optimizers and the learning rate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..errors import UserError
from ..experiment import TrainSpec
from ..model import Model
from ..tools.device import pick_device, uses_bf16
from .distributed import fsdp_requested
from .ema import trainable_parameters
from .loss import Stage

IN_BLOCK = re.compile(r"(blocks|attention)\.\d+\.|compressors\.\d+\.")


def learning_rate(spec: TrainSpec, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, level, linear decay to zero."""
    warm = min(1.0, (step + 1) / max(1, spec.warmup))
    tail = spec.decay * spec.steps
    left = min(1.0, (spec.steps - step) / tail) if tail >= 1 else 1.0
    return spec.rate * warm * left


def make_optimizer(stage: Stage, spec: TrainSpec) -> torch.optim.Optimizer:
    """Return the optimizer over all that trains; weight decay on matrices and kernels only.

    Raises:
        UserError: nothing trains (an Only-LR encoder under `trains: encoder`, say).
    """
    named = trainable_parameters(stage)
    if not named:
        raise UserError(
            f"train.trains={spec.trains}, but nothing of that has parameters: nothing would train"
        )
    if spec.optimizer == "adamw":
        return _adamw(list(named.values()), spec)
    matrices = {n: p for n, p in named.items() if p.dim() == 2 and IN_BLOCK.search(n)}
    adamw = _adamw([p for n, p in named.items() if n not in matrices], spec)
    return MuonAdamW(list(matrices.values()), adamw, spec) if matrices else adamw


def _adamw(parameters: Sequence[Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    filled = [g for g in groups if g["params"]] or groups[:1]  # beside Muon nothing may be left
    cls = torch.optim.AdamW if spec.optimizer_bits == 32 else adamw_8bit()
    optimizer: torch.optim.Optimizer = cls(filled, lr=spec.rate, betas=spec.betas)
    return optimizer


def adamw_8bit() -> Any:
    """Return bitsandbytes' AdamW, whose moments are 8 bits wide (of large tensors, in blocks).

    Raises:
        UserError: it is not installed, there is no GPU, or weights are sharded.
    """
    what = "train.optimizer_bits 8"
    if find_spec("bitsandbytes") is None:
        raise UserError(f'{what} needs bitsandbytes: pip install "longtake[bitsandbytes]"')
    if pick_device().type != "cuda":
        raise UserError(f"{what} needs a GPU, and there is none")
    if fsdp_requested():
        raise UserError(f"{what} needs whole weights, FSDP shards them: set it to 32")
    return import_module("bitsandbytes.optim").AdamW8bit


class WideMuon(torch.optim.Muon):
    """torch's Muon, its products in float32: CPUs that lack bf16 take three times as long in it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step all matrices that have a gradient."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for weight in (p for p in group["params"] if p.grad is not None):
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                mean = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
                ahead = weight.grad.lerp(mean, momentum) if group["nesterov"] else mean
                update = orthogonal(ahead.float(), group["ns_coefficients"], group["ns_steps"])
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(update, alpha=-rate * 0.2 * max(weight.shape) ** 0.5)


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Return a matrix with its singular values taken near 1 by Newton-Schulz steps, in its dtype.

    Source: Keller Jordan's Muon, as `torch.optim.Muon` has it in bf16.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Muon on the matrices of the blocks, AdamW on the rest, behind one interface.

    Muon's steps are scaled to the size of AdamW's, so that both share one learning rate.
    """

    def __init__(
        self, matrices: Sequence[Parameter], adamw: torch.optim.Optimizer, spec: TrainSpec
    ) -> None:
        half = uses_bf16(spec.precision, matrices[0].device)
        self.muon = (torch.optim.Muon if half else WideMuon)(
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
        """Return the state of both."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of both."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self.muon.param_groups, *self.adamw.param_groups]


def freeze(model: Model) -> None:
    """Freeze all but what `train.trains` names.

    With `all`, the first projection stays as it is all the same: the encoder holds a copy of it.

    Raises:
        UserError: all is to train, but weights of the backbone cannot (LoRAs beside, quantised);
            or the encoder alone, but it makes features, which a fresh backbone does not read yet.
    """
    trains = model.experiment.train.trains
    if trains == "encoder":
        if model.encoder.features:
            raise UserError(
                "train.trains=encoder, but what reads the encoder's features starts at zero and "
                "must train, too: turn the features off, or --set train.trains=lora"
            )
        model.backbone.requires_grad_(False)
    if trains == "all":
        if not all(parameter.requires_grad for parameter in model.backbone.parameters()):
            raise UserError(
                "train.trains=all, but weights of this backbone are frozen: leave out "
                "backbone.loras and backbone.quantize, or --set train.trains=lora"
            )
        for parameter in model.backbone.fitted():
            parameter.requires_grad_(False)
