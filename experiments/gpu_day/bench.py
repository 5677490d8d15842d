"""`bench`: the program's own bench of the embedded default, on random weights."""

from __future__ import annotations

from typing import Any

import torch

from ...core import bench as program
from ...core.config import load_experiment
from ...core.experiment import Experiment
from ...core.model import build_model
from ..common import tinier, untrained
from .day import Session, StepResult

SHIPPED = "tiny-wan-2x2x2"


def run(session: Session, results: StepResult) -> None:
    """Note what `longtake bench` measures; of a tiny model, what needs no other process.

    Raises:
        LongtakeError: it failed.
        TimeIsUp: it is for the next run.
    """
    torch.manual_seed(0)
    _, shipped = load_experiment(SHIPPED)
    bare = untrained(shipped)
    results.measure(
        "longtake bench", lambda: tiny_bench(bare) if session.tiny else program.bench(bare)
    )
    results.raise_faults()


def tiny_bench(experiment: Experiment) -> dict[str, Any]:
    """Return the figures of `longtake bench` that need no other process, of a tiny model."""
    model = build_model(tinier(experiment)).eval()
    history = program.random_history(model.experiment, 2.0)
    model.to(history.latents.device)
    return {
        "experiment": f"{experiment.name}, tiny",
        "machine": program.describe_machine(),
        "encoder": program.time_encoder(model, history, ceiling=1e9),
        "denoising_step": program.time_denoising_step(model, history),
    }
