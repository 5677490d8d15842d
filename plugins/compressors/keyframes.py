"""Keyframes: every so many latents, or the first of each shot, as they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...core.errors import UserError
from ...core.interfaces.compressor import Fit, Length, Needs, State
from ...core.interfaces.streaming import Streamed, emptied, follow, own, seen_size
from ...core.values.grid import Geometry, Rate, Size3, ceil_div
from ...core.values.history import History
from ...core.values.memory import Memory, Part
from .specs import Keyframes, Window
from .tokens import OwnTokens, block_means, frame_places

# ⟦plugins/compressors/keyframes_kept.py⟧ The newest of chosen latents, kept whole: what `window` and `keyframes` have in common.


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
        """Return the new state; `picked` `[B, T]` says which latents of the chunk are wanted."""
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
        """Return the tokens of what a state keeps, one part."""
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
    """Return the indices along n of the `count` greatest of each row, ascending, NEVER last.

    Args:
        at: `[B, n]`, NEVER where nothing is.
        count: how many at most; rows are as long as the fullest needs.
    """
    most = min(count, int((at != NEVER).sum(dim=1).max()))
    order = at.argsort(dim=1, descending=True)[:, :most]
    chosen = at.gather(1, order)
    late = torch.where(chosen == NEVER, torch.iinfo(at.dtype).max, chosen)
    return order.gather(1, late.argsort(dim=1))


class KeyframesCompressor(Streamed[Keyframes]):
    """One part, `keyframes`: the DiT's own tokens of the newest keyframes, oldest first.

    The first latent is a keyframe, and from there every `every`-th; with `shots` the count starts
    again at the first latent that lies wholly behind a cut. A new keyframe drives the oldest out,
    so nothing settles; the state holds the latents of the keyframes.
    """

    settles = False

    def __init__(self, spec: Keyframes, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.kept = Newest(fit, name="keyframes", newest=spec.newest, rate=spec.rate)

    @classmethod
    def needs(cls, spec: Keyframes) -> Needs:
        """Return the full-size latents."""
        return Needs()

    @classmethod
    def context_length(cls, spec: Keyframes, geometry: Geometry, size: Size3) -> Length:
        """Return the number of tokens; a bound with `shots`, since cuts are not known before."""
        cells = spec.rate.token_grid(size, geometry.patch)
        count = size.time
        if not spec.shots:
            count = min(count, ceil_div(count, spec.every) if spec.every else 1)
        frames = min(count, spec.newest)
        return Length(tokens=frames * cells.height * cells.width, exact=not spec.shots)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; keyframes stay pending, so the part given has no tokens.

        Raises:
            UserError: `shots` is on and nobody looked for cuts in the history.
        """
        new = self.kept.take(state, chunk, self.picked(chunk))
        return new, emptied(self.kept.memory(new))

    def pending(self, state: State) -> Memory:
        """Return the tokens of the newest keyframes."""
        return self.kept.memory(state)

    def picked(self, chunk: History) -> Tensor:
        """Return which latents of a chunk are keyframes, `[B, T]`."""
        end = chunk.offset + chunk.size.time
        begins = torch.zeros(chunk.batch, end, dtype=torch.int64)
        for row, first in enumerate(self._shots(chunk)):
            inside = [latent for latent in first if 0 < latent < end]
            begins[row, inside] = torch.tensor(inside, dtype=torch.int64)
        behind = (torch.arange(end) - begins.cummax(dim=1).values)[:, chunk.offset :]
        return behind % self.spec.every == 0 if self.spec.every else behind == 0

    def _shots(self, chunk: History) -> list[list[int]]:
        """Return the first latents of the shots of each sample, counted in the window."""
        if not self.spec.shots:
            return [[] for _ in range(chunk.batch)]
        if len(chunk.cuts) != chunk.batch:
            raise UserError(
                "keyframes of shots need the times of cuts, which this history has not: "
                "cache with cache.cuts=true, or set shots=false"
            )
        pairs = zip(chunk.cuts, chunk.start.tolist(), strict=True)
        return [[first_latent(self.geometry, c) - start for c in cuts] for cuts, start in pairs]


def first_latent(geometry: Geometry, seconds: float) -> int:
    """Return the first latent of a video that shows nothing from before a time.

    Latent i ≥ 1 shows frames s(i − 1) + 1 … si at a time stride s, latent 0 frame 0.
    """
    frame = math.ceil(round(geometry.fps * seconds, 6))
    return 1 + ceil_div(frame - 1, geometry.vae_stride.time) if frame > 0 else 0


# ⟦plugins/compressors/window.py⟧ A sliding window: the newest latents as they are.


EACH = Rate(height=1, width=1, time=1)


class WindowCompressor(Streamed[Window]):
    """One part, `window-<n>`: the DiT's own tokens of the newest n latents, oldest first.

    Every new latent drives one out, so nothing settles; the state holds the n latents.

    Source: method.md §5: beside a compressed memory, 3 latents give continuous shots.
    """

    settles = False

    def __init__(self, spec: Window, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.kept = Newest(fit, name=f"window-{spec.latents}", newest=spec.latents, rate=EACH)

    @classmethod
    def needs(cls, spec: Window) -> Needs:
        """Return the full-size latents."""
        return Needs()

    @classmethod
    def context_length(cls, spec: Window, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens: those of n uncompressed latents."""
        cells = EACH.token_grid(size, geometry.patch)
        return Length(tokens=min(size.time, spec.latents) * cells.height * cells.width)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; what is kept stays pending, so the part given has no tokens."""
        every = torch.ones(chunk.batch, chunk.size.time, dtype=torch.bool)
        new = self.kept.take(state, chunk, every)
        return new, emptied(self.kept.memory(new))

    def pending(self, state: State) -> Memory:
        """Return the tokens of the newest latents."""
        return self.kept.memory(state)
