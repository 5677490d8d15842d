"""The Large Patchifier: strided projections of latents, at one rate or coarser with age."""

from __future__ import annotations

from ...core.compressor import Compressor, State
from ...core.errors import UserError
from ...core.fit import Fit, Length, Needs
from ...core.grid import Geometry, Size3
from ...core.history import History
from ...core.memory import Memory
from ..patchifier_specs import Patchifier
from .patchifier_aged import AgedPatches, count_tokens
from .patchifier_even import EvenPatches


class PatchifierCompressor(Compressor[Patchifier]):
    """FramePack's memory: each rate has one projection, which sees nothing beyond its own block.

    Projections start as FramePack's do: the DiT's first projection, each of its weights repeated
    over rate's height × width × time cells and divided by their number, so that a token begins as
    the DiT's own token of the block's mean.

    Without a schedule: one part, `patchifier-<rate>`, on the grid of memory frames that `conv` has;
    latent 0 is a block by itself (repeated), and the state holds the latents of the block that is
    not complete. With a schedule: one part, `patchifier-aged`, oldest first; ages change as the
    history grows, so nothing settles (except under `tail: rest`, where old blocks are final), and
    the state holds the newest latents only.

    Extents are the real cells that a token covers. Where a block was filled up by repeating its
    last row, column or frame, FramePack's averaged rotary table counts that one again: with edge
    rate k and extent e, k − e times more.

    Source: method.md §6; FramePack, arXiv 2504.12626 §3 (kernels, tails) and its code.
    """

    def __init__(self, spec: Patchifier, fit: Fit) -> None:
        super().__init__(spec, fit)
        if fit.geometry.patch.time != 1:
            raise UserError("patchifier needs a DiT whose patches hold one latent frame")
        self.inner = AgedPatches(spec, fit) if spec.schedule else EvenPatches(spec, fit)
        self.settles = self.inner.settles

    @classmethod
    def needs(cls, spec: Patchifier) -> Needs:
        """Give HR latents, and nothing else."""
        return Needs()

    @classmethod
    def context_length(cls, spec: Patchifier, geometry: Geometry, size: Size3) -> Length:
        """Give the exact number of tokens."""
        if spec.schedule:
            return Length(tokens=count_tokens(spec, geometry.patch, size))
        return Length(tokens=spec.rate.token_grid(size, geometry.patch).cells)

    def forward(self, history: History) -> Memory:
        """Give the memory of a whole window."""
        return self.inner.whole(history)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens that are final from now on.

        Raises:
            ValueError: the chunk does not follow what the state has seen.
        """
        before = int(state["seen"][0]) if state else 0
        if chunk.offset != before:
            raise ValueError(f"a chunk from latent {chunk.offset} after {before} were seen")
        return self.inner.take(state or {}, chunk, before)

    def pending(self, state: State) -> Memory:
        """Give the tokens that may still change."""
        return self.inner.rest(state)
