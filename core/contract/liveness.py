"""Liveness: no parameter may be dead (design §3; three released systems shipped a dead memory)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..compressor import Compressor
from ..history import History
from ..memory import Memory
from .expect import require

STEPS = 2  # the first one opens zero-initialised outputs, the second reaches what feeds them


def check_liveness(compressor: Compressor[Any], history: History) -> None:
    """Hold every parameter to a gradient, and to having moved after two optimizer steps.

    Raises:
        AssertionError: naming the parameters that have none or did not move.
    """
    named = dict(compressor.named_parameters())
    if not named:
        return
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer = torch.optim.Adam(named.values(), lr=1e-2)
    compressor.train()
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        loss = probe(compressor(history))
        require(loss.requires_grad, "liveness: the memory does not depend on any parameter")
        loss.backward()
        optimizer.step()
    silent = [name for name, p in named.items() if p.grad is None or not bool(p.grad.any())]
    require(not silent, f"liveness: no gradient after {STEPS} steps: {', '.join(silent)}")
    still = [name for name, p in named.items() if torch.equal(p.detach(), before[name])]
    require(not still, f"liveness: not moved after {STEPS} steps: {', '.join(still)}")


def probe(memory: Memory) -> Tensor:
    """Give a loss that weighs every token and feature differently."""
    random = torch.Generator().manual_seed(0)
    floats = [x for part in memory.parts for x in (part.tokens, *part.features.values())]
    terms = [(x * torch.randn(x.shape, generator=random, dtype=x.dtype)).sum() for x in floats]
    return sum(terms, torch.zeros(()))


def awaken(compressor: Compressor[Any], seed: int = 0) -> Compressor[Any]:
    """Give the compressor with its all-zero parameters made random, so that laws mean something."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in compressor.parameters():
            if not bool(parameter.any()):
                noise = torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
                parameter.copy_(noise / max(1, parameter[0].numel()) ** 0.5)
    return compressor
