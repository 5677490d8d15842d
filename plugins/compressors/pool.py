"""Mean pooling of the DiT's own tokens: memory without parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core.interfaces.compressor import Fit, Length, Needs, State
from ...core.interfaces.streaming import Run, Streamed, take_blocks, waiting
from ...core.values.grid import Geometry, Size3
from ...core.values.history import History
from ...core.values.memory import Memory, grid_part
from .specs import Pool
from .tokens import OwnTokens, block_means


class PoolCompressor(Streamed[Pool]):
    """One part, `pool-<rate>`: each token is the mean of the DiT's tokens of the cells it covers.

    Blocks at the right, the bottom and the end of the history are means of what is there. The
    state holds the latents that complete no block, fewer than the time rate.
    """

    def __init__(self, spec: Pool, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.own = OwnTokens(fit)

    @classmethod
    def needs(cls, spec: Pool) -> Needs:
        """Return the full-size latents."""
        return Needs()

    @classmethod
    def context_length(cls, spec: Pool, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens: the cells of the token grid."""
        return Length(tokens=spec.rate.token_grid(size, geometry.patch).cells)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens of the blocks that it completed."""
        new, run = take_blocks(state, chunk, self.spec.rate.time)
        return new, self._memory(run)

    def pending(self, state: State) -> Memory:
        """Return the mean of the incomplete block, so far."""
        return self._memory(waiting(state, self.spec.rate.time))

    def _memory(self, run: Run) -> Memory:
        if not run.latents.shape[2]:
            return Memory(size=run.seen)
        rate, patch = self.spec.rate, self.geometry.patch
        tokens = self.own.project(self._means(run))
        part = grid_part(
            f"pool-{rate}", tokens.flatten(2, 3), rate=rate, size=run.seen, patch=patch,
            grid=rate.token_grid(run.seen, patch), start=run.start, length=run.length,
            skip=rate.settled_tokens(run.first),
        )  # fmt: skip
        return Memory(parts=(part,), size=run.seen)

    def _means(self, run: Run) -> Tensor:
        """Return mean patches `[B, T', H', W', F]`; latent 0 is a block of its own."""
        rate = self.spec.rate
        patches = self.own.cut(run.latents)
        patches = block_means(block_means(patches, 2, rate.height), 3, rate.width)
        alone = 0 if run.first else 1
        return torch.cat([patches[:, :alone], block_means(patches[:, alone:], 1, rate.time)], dim=1)
