"""What a row's encoder costs: parameters, floating-point operations, and milliseconds here."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...core.history import History
from ...core.model import Model
from ..gpu_steps.timing import paced

REPEATS = 5


@torch.no_grad()
def cost(model: Model, history: History) -> dict[str, Any]:
    """Give what encoding a history of one sample costs.

    Returns:
        parameters; gflop: of matrix products and convolutions (twice the multiply-adds), as
        torch's counter sees them; milliseconds: median of five runs after three.
    """
    with FlopCounterMode(display=False) as counter:
        model.encoder(history)
    times = paced(lambda: model.encoder(history), history.latents.device, REPEATS)
    return {
        "parameters": sum(p.numel() for p in model.encoder.parameters()),
        "gflop": round(counter.get_total_flops() / 1e9, 4),
        "milliseconds": round(1000 * times["seconds"], 3),
        "latents": history.size.time,
    }
