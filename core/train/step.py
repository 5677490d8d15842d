"""A stage as training builds it; and Stage I's bare step, for whoever times one without a run."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import Self

import torch
from attrs import define
from torch import Tensor, nn
from torch.nn import Parameter

from ..data.windows import Batch
from ..errors import UserError
from ..experiment import TrainSpec
from ..interfaces.backbone import Backbone
from ..model import Model, compressor_needs
from ..registry import build
from ..values.text import Text
from .ema import trainable_parameters
from .loss import Stage, StageOne, StageTwo
from .optim import freeze, make_optimizer

COMPILERS = ("c++", "g++", "clang++", "cl")


def build_stage(model: Model, null_text: Text) -> Stage:
    """Return the stage that a model's experiment trains, all else frozen.

    Raises:
        UserError: as `freeze`; or noise is asked for in pasts of which a compressor reads pixels.
    """
    finetune = model.experiment.finetune
    if finetune is None:
        return build_stage_one(model, null_text)
    if finetune.corruption != "none" and compressor_needs(model.experiment).pixels:
        raise UserError(
            f"finetune.corruption={finetune.corruption} is noise in latents, but a compressor "
            "reads pixels: --set finetune.corruption=none"
        )
    freeze(model)
    if finetune.encoder == "frozen":
        model.encoder.requires_grad_(False)
    _set_up(model.backbone, model.experiment.train)
    return StageTwo(model, finetune, model.experiment.train, null_text)


def build_stage_one(model: Model, null_text: Text) -> StageOne:
    """Return Stage I of a model, all frozen that `train.trains` leaves out.

    Raises:
        UserError: as `freeze`.
    """
    train = model.experiment.train
    freeze(model)
    _set_up(model.backbone, train)
    masker = build(model.experiment.masker).fit_to(model.backbone.geometry)
    return StageOne(model, masker, train, null_text)


def _set_up(backbone: Backbone, train: TrainSpec) -> None:
    """Turn on what training wants of G.

    Raises:
        UserError: it is to be compiled, and what that needs is not here.
    """
    backbone.set_checkpointing(train.checkpointing)
    if train.compile:
        check_compiler(next(backbone.parameters()).device)
        compile_blocks(backbone)


def check_compiler(device: torch.device) -> None:
    """Raise UserError if torch.compile cannot make code for a device.

    Args:
        device: triton makes the code of GPUs, a C++ compiler that of CPUs.
    """
    if device.type == "cpu":
        named = os.environ.get("CXX")
        if not any(shutil.which(name) for name in ([named] if named else COMPILERS)):
            raise UserError("train.compile needs a C++ compiler such as g++: leave it off")
    elif not find_spec("triton"):
        raise UserError("train.compile needs triton on a GPU: pip install triton, or leave it off")


def compile_blocks(backbone: nn.Module, compiler: str = "inductor") -> int:
    """Compile each block of G by itself, in place; return how many there are.

    Blocks are alike, so that one piece of code serves them all; names of weights stay.

    Args:
        backbone: its `_no_split_modules` names the classes of its blocks.
        compiler: torch.compile's backend.
    """
    names = set(backbone._no_split_modules or ())  # type: ignore[arg-type]
    blocks = [module for module in backbone.modules() if type(module).__name__ in names]
    for block in blocks:
        block.compile(dynamic=True, backend=compiler)
    return len(blocks)


@define
class StageOneStep:
    """Trains a step at a time in one process, at a fixed learning rate: no logs, no checkpoints.

    Attributes:
        stage: of the model, on its device.
        optimizer: over all that trains.
        weights: all that trains.
    """

    stage: StageOne
    optimizer: torch.optim.Optimizer
    weights: list[Parameter]

    @classmethod
    def of(cls, model: Model, null_text: Text, device: torch.device) -> Self:
        """Return the step of a model, which is moved to `device`.

        Raises:
            UserError: as `freeze` and `make_optimizer`.
        """
        stage = build_stage_one(model.to(device), null_text).to(device)
        optimizer = make_optimizer(stage, stage.spec)
        return cls(stage, optimizer, list(trainable_parameters(stage).values()))

    @property
    def trained_parameters(self) -> int:
        """How many numbers it trains."""
        return sum(weight.numel() for weight in self.weights)

    def __call__(self, batch: Batch, step: int = 0) -> Tensor:
        """Train on a batch and return its loss: forward, backward, clip, optimizer."""
        loss: Tensor = self.stage(batch, step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, self.stage.spec.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()
