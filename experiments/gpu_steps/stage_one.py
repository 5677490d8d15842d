"""A whole Stage I step of the tiny model under the cap: the largest batch that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...core.bench import random_history
from ...core.data.batch import Batch
from ...core.device import autocast
from ...core.edge import load_experiment
from ...core.experiment import Experiment
from ...core.model import build_model
from ...core.registry import build
from ...core.train.optim import freeze, make_optimizer
from ...core.train.stage import StageOne
from .tinier import tinier, untrained

NAME = "tiny-wan-2x2x2"
MOST = 512  # samples


def largest_batch(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Give the largest batch (a power of two) whose step fits, with 20 s of history a sample."""
    _, shipped = load_experiment(NAME)
    experiment = tinier(shipped) if tiny else untrained(shipped)
    seconds = 2.0 if tiny else 20.0
    step = stage_step(experiment, seconds, device)
    best = doubled(lambda batch: fits(lambda: step(batch)), most=2 if tiny else MOST)
    return {"experiment": experiment.name, "seconds": seconds, "largest_batch": best}


def doubled(good: Callable[[int], bool], *, most: int) -> int:
    """Give the largest of 1, 2, 4, ... ≤ most that is good before the first that is not; or 0."""
    best, number = 0, 1
    while number <= most and good(number):
        best, number = number, 2 * number
    return best


def fits(run: Callable[[], None]) -> bool:
    """Say whether something runs without a lack of memory."""
    try:
        run()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def stage_step(
    experiment: Experiment, seconds: float, device: torch.device
) -> Callable[[int], None]:
    """Give a Stage I step (Eq. 3) of a batch of so many samples, with its optimizer."""
    model = build_model(experiment, adapters=True).to(device)
    freeze(model)
    text = build(experiment.backbone.text_encoder)
    stage = StageOne(
        model, build(experiment.masker), experiment.train, text.encode([""]).to(device)
    ).to(device)
    optimizer = make_optimizer(stage, experiment.train)
    one = random_history(experiment, seconds)

    def step(samples: int) -> None:
        prompts = text.encode(["a walk by the sea"] * samples).to(device)
        batch = Batch(history=one.select([0] * samples), text=prompts, names=("random",) * samples)
        with autocast("bf16", device):
            loss = stage(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step
