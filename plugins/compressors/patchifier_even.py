"""`patchifier` at one rate: blocks of latents on the grid of memory frames."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from ...core.compressor import State
from ...core.fit import Fit
from ...core.grid import Size3
from ...core.history import History
from ...core.memory import Memory
from ...core.parts import grid_part
from ...core.streams import joined, own
from ..patchifier_specs import Patchifier
from .conv_branches import extended
from .patchifier_layers import Projection


class EvenPatches(nn.Module):
    """Memory frame 0 is latent 0, repeated to a block; frame j is latents r(j − 1) + 1 … rj.

    State: `waiting`, the latents of the incomplete block; `seen`, `start`.
    """

    settles: ClassVar[bool] = True

    def __init__(self, spec: Patchifier, fit: Fit) -> None:
        super().__init__()
        self.rate = spec.rate
        self.patch = fit.geometry.patch
        self.project = Projection(spec.rate, fit)

    def whole(self, history: History) -> Memory:
        """Give the memory of a window; shorter samples go on with their own last latent."""
        frames = self.rate.time_tokens(history.size.time)
        # An empty history runs on one zero latent, so that the graph still holds every parameter.
        total = 1 + (max(frames, 1) - 1) * self.rate.time
        latents = extended(history.latents, history.length, total)
        tokens = self._tokens(latents, first=True)[:, :frames]
        return self._memory(tokens, history.size, history.start, history.length, 0)

    def take(self, state: State, chunk: History, before: int) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens of the blocks that it completed."""
        size = attrs.evolve(chunk.size, time=before + chunk.size.time)
        ready = self.rate.settled_latents(size.time) - self.rate.settled_latents(before)
        waiting = joined(state.get("waiting"), chunk.latents, dim=2)
        new: State = {
            "seen": torch.tensor([size.time, size.height, size.width]),
            "start": state.get("start", chunk.start.clone()),
            "waiting": own(waiting[:, :, ready:]),
        }
        if not ready:
            return new, Memory(size=size)
        tokens = self._tokens(waiting[:, :, :ready], first=before == 0)
        length = torch.full_like(chunk.length, size.time)
        skip = self.rate.settled_tokens(before)
        return new, self._memory(tokens, size, new["start"], length, skip)

    def rest(self, state: State) -> Memory:
        """Give the token frame of the incomplete block."""
        time, height, width = state["seen"].tolist()
        size = Size3(time=time, height=height, width=width)
        if not state["waiting"].shape[2]:
            return Memory(size=size)
        length = torch.full_like(state["start"], time)
        tokens = self._tokens(state["waiting"], first=False)
        return self._memory(tokens, size, state["start"], length, self.rate.settled_tokens(time))

    def _tokens(self, latents: Tensor, *, first: bool) -> Tensor:
        """Give the tokens of complete blocks, or of one incomplete; `first`: latent 0 is there."""
        if first:
            before = latents[:, :, :1].expand(-1, -1, self.rate.time - 1, -1, -1)
            latents = torch.cat([before, latents], dim=2)
        tokens: Tensor = self.project(latents)
        return tokens

    def _memory(
        self, tokens: Tensor, size: Size3, start: Tensor, length: Tensor, skip: int
    ) -> Memory:
        part = grid_part(
            f"patchifier-{self.rate}",
            tokens,
            rate=self.rate,
            size=size,
            patch=self.patch,
            grid=self.rate.token_grid(size, self.patch),
            start=start,
            length=length,
            skip=skip,
        )
        return Memory(parts=(part,), size=size)
