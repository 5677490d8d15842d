"""What a row's encoder costs: parameters, floating-point operations, and time beside its peers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...core.history import History
from ...core.model import Model

WARM, ROUNDS = 2, 7
REFERENCE = "proposed-4x4x2"
Paces = Mapping[str, float]  # seconds by row


@torch.no_grad()
def cost(model: Model, history: History) -> dict[str, Any]:
    """Give what encoding a history of one sample takes.

    Returns:
        parameters; gflop: of matrix products and convolutions (twice the multiply-adds), as
        torch's counter sees them; latents of the history.
    """
    # attention as plain products: the counter knows nothing of the fused one on CPUs
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encoder(history)
    return {
        "parameters": sum(p.numel() for p in model.encoder.parameters()),
        "gflop": counter.get_total_flops() / 1e9,
        "latents": history.size.time,
    }


@torch.no_grad()
def race(entries: Mapping[str, tuple[Model, History]]) -> dict[str, float]:
    """Give the seconds of each encoder: the median of rounds in which all take their turn."""
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    for number in range(WARM + ROUNDS):
        for name, (model, history) in entries.items():
            taken = _once(model, history)
            if number >= WARM:
                seconds[name].append(taken)
    return {name: median(found) for name, found in seconds.items()}


def _once(model: Model, history: History) -> float:
    device = history.latents.device
    began = time.perf_counter()
    model.encoder(history)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
