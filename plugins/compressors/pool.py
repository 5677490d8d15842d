"""Mean pooling of the DiT's own tokens: memory without parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.interfaces.compressor import Fit
from ...core.interfaces.streaming import GridCompressor, LatentSpan
from .specs import Pool
from .tokens import OwnTokens, block_means, mean_patches


class PoolCompressor(GridCompressor[Pool]):
    """One part, `pool-<rate>`: each token is the mean of the DiT's tokens of the cells it covers.

    Blocks at the right, the bottom and the end of the history are means of what is there.
    """

    part = "pool"

    def __init__(self, spec: Pool, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.own = OwnTokens(fit)

    def tokens(self, span: LatentSpan) -> Tensor:
        """Return the tokens of mean patches `[B, T', S, D]`; latent 0 is a block of its own."""
        patches = mean_patches(self.own.cut(span.latents), self.spec.rate)
        alone = 0 if span.first else 1
        blocks = block_means(patches[:, alone:], 1, self.spec.rate.time)
        means = torch.cat([patches[:, :alone], blocks], dim=1)
        return self.own.project(means).flatten(2, 3)
