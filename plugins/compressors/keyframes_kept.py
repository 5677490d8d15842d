"""The newest of chosen latents, kept whole: what `window` and `keyframes` have in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...core.compressor import State
from ...core.fit import Fit
from ...core.grid import Rate
from ...core.history import History
from ...core.memory import Memory, Part
from ...core.streams import follow, own, seen_size
from .streams_tokens import OwnTokens, block_means, frame_places

NEVER = -1  # the place of padding, where a sample keeps fewer latents than others of its batch


class Newest(nn.Module):
    """The newest latents of those picked, as the DiT's own tokens, oldest first.

    State: `latents`, those that are kept, `[B, C, n, H, W]`; `at`, where in the window they stand,
    `[B, n]`.
    """

    def __init__(self, fit: Fit, *, name: str, newest: int, rate: Rate) -> None:
        super().__init__()
        self.name = name
        self.newest = newest
        self.rate = rate
        self.geometry = fit.geometry
        self.own = OwnTokens(fit)

    def take(self, state: State | None, chunk: History, picked: Tensor) -> State:
        """Give the new state; `picked` `[B, T]` says which latents of the chunk are wanted."""
        new = follow(state, chunk)
        at = torch.where(picked, chunk.offset + torch.arange(chunk.size.time), NEVER)
        latents = chunk.latents
        if state:
            at = torch.cat([state["at"], at], dim=1)
            latents = torch.cat([state["latents"], latents], dim=2)
        order = newest_in_order(at, self.newest)
        rows = torch.arange(len(at))[:, None]
        kept = latents.transpose(1, 2)[rows, order].transpose(1, 2)
        at = at.gather(1, order)
        padding = (at == NEVER).to(kept.device)[:, None, :, None, None]
        return {**new, "at": at, "latents": own(kept.masked_fill(padding, 0.0))}

    def memory(self, state: State) -> Memory:
        """Give the tokens of what a state keeps, one part."""
        at, size = state["at"], seen_size(state)
        patches = self.own.cut(state["latents"])
        patches = block_means(block_means(patches, 2, self.rate.height), 3, self.rate.width)
        tokens = self.own.project(patches).flatten(2, 3)  # [B, n, S, D]
        frames = at.clamp(min=0) + state["start"][:, None]
        positions, extents = frame_places(frames, size, self.geometry.patch, self.rate)
        part = Part(
            name=self.name,
            tokens=tokens.flatten(1, 2),
            positions=positions,
            extents=extents,
            valid=(at != NEVER).repeat_interleave(tokens.shape[2], dim=1),
        )
        return Memory(parts=(part,), size=size)


def newest_in_order(at: Tensor, count: int) -> Tensor:
    """Give the indices along n of the `count` greatest of each row, ascending, NEVER last.

    Args:
        at: `[B, n]`, NEVER where nothing is.
        count: how many at most; rows are as long as the fullest needs.
    """
    most = min(count, int((at != NEVER).sum(dim=1).max()))
    order = at.argsort(dim=1, descending=True)[:, :most]
    chosen = at.gather(1, order)
    late = torch.where(chosen == NEVER, torch.iinfo(at.dtype).max, chosen)
    return order.gather(1, late.argsort(dim=1))
