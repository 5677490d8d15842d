"""A Stage I step of a published backbone: the real stage, encoder, LoRA and optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...core.backbone import Backbone
from ...core.data.batch import Batch
from ...core.draws import Draws
from ...core.experiment import Experiment
from ...core.model import Model, build_encoder
from ...core.registry import build
from ...core.train.optim import freeze, make_optimizer
from ...core.train.stage import StageOne
from .backbones_cost import Bench, Shelf
from .backbones_inputs import random_history
from .backbones_plan import Subject
from .timing import paced


def stage_one(subject: Subject, shelf: Shelf, tokens: int, bench: Bench) -> dict[str, Any]:
    """Give the cost of a Stage I step on a history of about so many tokens; 0: of LoRA alone.

    Without memory the targets are cut out of the shorter history.
    """
    experiment = subject.experiment(remembers=bool(tokens))
    backbone = shelf.take(subject.spec, experiment.train.adapter)
    stage = stage_of(subject, experiment, backbone, bench.device)
    batch = batch_of(subject, backbone, tokens or min(subject.extent.tokens), bench.device)
    step, trained = step_of(stage, batch)
    masking = paced(lambda: _mask(stage, batch), bench.device, bench.repeats, warm=0)
    return {
        "tokens": _tokens(stage, batch) if tokens else 0,
        "history": str(batch.history.size),
        "targets": subject.extent.targets,
        "samples": batch.history.batch,
        "trained_parameters": trained,
        **bench.cost(step),
        "masking": masking,
    }


def stage_of(
    subject: Subject, experiment: Experiment, backbone: Backbone, device: torch.device
) -> StageOne:
    """Give the stage of an experiment as training builds it, on a backbone with its adapters."""
    encoder = build_encoder(experiment, backbone.fit(), seed=0)
    model = Model(experiment, backbone, encoder).to(device)
    freeze(model)
    backbone.set_checkpointing(experiment.train.checkpointing)
    null = backbone.blank_text(1, subject.text_length)
    return StageOne(model, build(experiment.masker), experiment.train, null).to(device)


def batch_of(subject: Subject, backbone: Backbone, tokens: int, device: torch.device) -> Batch:
    """Give one random sample of a history of about so many tokens."""
    text = backbone.blank_text(1, subject.text_length)
    return Batch(history=random_history(subject, tokens, device), text=text, names=("random",))


def step_of(stage: StageOne, batch: Batch) -> tuple[Callable[[], torch.Tensor], int]:
    """Give a step, which gives its loss, and the number of parameters that it trains."""
    spec, optimizer = stage.spec, make_optimizer(stage, stage.spec)
    weights = [p for p in stage.parameters() if p.requires_grad]

    def step() -> torch.Tensor:
        loss: torch.Tensor = stage(batch, 0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, spec.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step, sum(p.numel() for p in weights)


def _mask(stage: StageOne, batch: Batch) -> None:
    stage.masker(batch.history, batch.text, Draws.of(stage.spec.seed, 0, batch.places, "loss"))


@torch.no_grad()
def _tokens(stage: StageOne, batch: Batch) -> int:
    return int(stage.within(lambda: stage.encoder(batch.history)).length)
