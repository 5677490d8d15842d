"""What launched processes do beside training, for tests: they tell of their parts, or fall sick."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from longtake.core.data.windows import Batch
from longtake.core.train import distributed as sharded
from longtake.core.train import trainer as step
from longtake.core.train.distributed import is_sharded
from longtake.core.train.loss import StageOne


def tell_parts(folder: str) -> None:
    """Write `held-<rank>.json` as training is prepared: [weights, all sharded, held here]."""
    real = sharded.prepare

    def prepare(accelerator: Any, stage: StageOne, optimizer: Any) -> tuple[Any, Any]:
        found = real(accelerator, stage, optimizer)
        parameters = list(stage.parameters())
        held = [p.to_local() if is_sharded(p) else p for p in parameters]
        counts = [sum(x.numel() for x in xs) for xs in (parameters, held)]
        told = [counts[0], all(map(is_sharded, parameters)), counts[1]]
        path = Path(folder) / f"held-{os.environ['RANK']}.json"
        path.write_text(json.dumps(told), encoding="utf-8")
        return found

    sharded.prepare = prepare


def spoil(folder: str, at: int, places: tuple[int, ...]) -> None:
    """Make the loss of a step no number wherever a sample of these places in its batch is.

    Each process writes the clips that it blames, `sick-<rank>.json`.
    """
    forward, say = StageOne.forward, step._not_finite

    def sick(self: StageOne, batch: Batch, step: int) -> torch.Tensor:
        loss = forward(self, batch, step)
        return loss * float("nan") if step == at and {*places} & {*batch.places} else loss

    def told(what: str, value: float, step: int, names: list[str]) -> str:
        path = Path(folder) / f"sick-{os.environ.get('RANK', 'alone')}.json"
        path.write_text(json.dumps(names), encoding="utf-8")
        return say(what, value, step, names)

    StageOne.forward = sick  # type: ignore[method-assign]
    step._not_finite = told
