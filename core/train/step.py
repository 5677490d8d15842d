"""A stage as training builds it; and Stage I's bare step, for whoever times one without a run."""

from __future__ import annotations

from typing import Self

import torch
from attrs import define
from torch import Tensor
from torch.nn import Parameter

from ..data.windows import Batch
from ..errors import UserError
from ..model import Model, compressor_needs
from ..registry import build
from ..values.text import Text
from .ema import trainable_parameters
from .loss import Stage, StageOne, StageTwo
from .optim import freeze, make_optimizer


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
    model.backbone.set_checkpointing(model.experiment.train.checkpointing)
    return StageTwo(model, finetune, model.experiment.train, null_text)


def build_stage_one(model: Model, null_text: Text) -> StageOne:
    """Return Stage I of a model, all frozen that `train.trains` leaves out.

    Raises:
        UserError: as `freeze`.
    """
    train = model.experiment.train
    freeze(model)
    model.backbone.set_checkpointing(train.checkpointing)
    masker = build(model.experiment.masker).fit_to(model.backbone.geometry)
    return StageOne(model, masker, train, null_text)


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
