"""Which frames are asked for: Ω, and copies of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.draws import Draws
from ...core.errors import UserError
from ...core.shapes import Counts, Frames, Latents, Targets
from ..masker_specs import Asking


def choose(spec: Asking, length: Counts, draws: Draws) -> Frames:
    """Give Ω `[B, K]`, int64 on the CPU, ascending and inside each sample's length.

    K is drawn for the batch, at most its shortest history. `where: last` gives the last K frames
    of every sample; as many numbers are drawn as for `random`, so that the rest is masked alike.

    Raises:
        UserError: a history of the batch is empty, so that nothing can be asked.
    """
    shortest = int(length.min())
    if shortest < 1:
        raise UserError("a history of the batch is empty: there is no frame to ask for")
    drawn = int(torch.randint(len(spec.counts), (), generator=draws.shared))
    count = min(spec.counts[drawn], shortest)
    run = draws.uniform() < spec.contiguous
    rows = [
        (_run if one else _scattered)(int(n), count, generator)
        for n, one, generator in zip(length, run, draws.each, strict=True)
    ]
    if spec.where == "last":
        rows = [torch.arange(int(n) - count, int(n)) for n in length]
    return torch.stack(rows)


def frames_at(latents: Latents, omega: Frames) -> Targets:
    """Give copies of the latent frames Ω of each sample, `[B, C, K, H, W]`."""
    batch, channels, _, height, width = latents.shape
    index = omega[:, None, :, None, None].expand(batch, channels, -1, height, width)
    return latents.gather(2, index)


def _run(length: int, count: int, generator: torch.Generator) -> Tensor:
    first = torch.randint(length - count + 1, (), generator=generator)
    return first + torch.arange(count)


def _scattered(length: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(length, generator=generator)[:count].sort().values
