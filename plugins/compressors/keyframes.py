"""The newest latents as they are: a sliding window, or keyframes (every so many, or of shots)."""

from __future__ import annotations

import functools
import logging
import math
from abc import abstractmethod
from typing import TypeVar

import torch
from einops import rearrange, repeat
from torch import Tensor

from ...core.errors import UserError
from ...core.interfaces.compressor import Fit, Length, Needs, State
from ...core.interfaces.spec import CompressorSpec
from ...core.interfaces.streaming import Streamed, advance, own_copy, seen_size
from ...core.values.grid import Geometry, Rate, Size3, ceil_div
from ...core.values.history import History
from ...core.values.memory import Memory, Part, box_places, spans
from .specs import Keyframes, Window
from .tokens import UNCOMPRESSED, OwnTokens, mean_patches

S = TypeVar("S", bound=CompressorSpec)
NEVER = -1  # the place of padding, where a sample keeps fewer latents than others of its batch


class NewestCompressor(Streamed[S]):
    """Keeps the newest latents of those picked, as the DiT's own tokens, oldest first, in one part.

    A new one drives the oldest out, so nothing settles. State: `latents`, those that are kept,
    `[B, C, n, H, W]`; `at`, where in the window they stand, `[B, n]`.

    Args:
        spec: of the compressor.
        fit: of the backbone.
        name: of the part.
        newest: how many latents are kept.
        rate: rows and columns of patch cells that one token is the mean of; its time is 1.
    """

    settles = False

    def __init__(self, spec: S, fit: Fit, *, name: str, newest: int, rate: Rate) -> None:
        super().__init__(spec, fit)
        self.name = name
        self.newest = newest
        self.rate = rate
        self.own = OwnTokens(fit)

    @abstractmethod
    def picked(self, chunk: History) -> Tensor:
        """Return which latents of a chunk are candidates, bool `[B, T]`."""

    def dropped(self, at: Tensor, chunk: History) -> Tensor:
        """Return which latents are not kept once the chunk is there, bool `[B, n]`; here none.

        Args:
            at: where in the window the latents kept so far and those of the chunk stand, `[B, n]`.
            chunk: the newest one.
        """
        return torch.zeros_like(at, dtype=torch.bool)

    @classmethod
    def needs(cls, spec: S) -> Needs:
        """Return the full-size latents."""
        return Needs()

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; what is kept stays pending, so the part returned has no tokens."""
        at = torch.where(self.picked(chunk), chunk.offset + torch.arange(chunk.size.time), NEVER)
        new, latents = advance(state, chunk), chunk.latents
        if state:
            at = torch.cat([state["at"], at], dim=1)
            latents = torch.cat([state["latents"], latents], dim=2)
        at = at.masked_fill(self.dropped(at, chunk), NEVER)
        order = newest_in_order(at, self.newest)
        samples = torch.arange(len(at))[:, None]
        newest = rearrange(latents, "b c t h w -> b t c h w")[samples, order]
        at = at.gather(1, order)
        padding = (at == NEVER).to(newest.device)[:, :, None, None, None]
        newest = rearrange(newest.masked_fill(padding, 0.0), "b n c h w -> b c n h w")
        new |= {"at": at, "latents": own_copy(newest)}
        return new, self.pending(new).without_tokens()

    def pending(self, state: State) -> Memory:
        """Return the tokens of the latents that are kept."""
        if not state["at"].shape[1]:
            return self.pending(_one_zero(state)).without_tokens()
        at, size, patch = state["at"], seen_size(state), self.geometry.patch
        tokens = self.own.project(mean_patches(self.own.cut(state["latents"]), self.rate))
        rows, columns = ceil_div(size.height, patch.height), ceil_div(size.width, patch.width)
        latent = at.clamp(min=0).to(torch.float64)
        positions, extents = box_places(
            (latent, latent),
            spans(rows, self.rate.height, tokens.shape[2]),
            spans(columns, self.rate.width, tokens.shape[3]),
            state["start"],
        )
        part = Part(
            name=self.name,
            tokens=rearrange(tokens, "b n h w d -> b (n h w) d"),
            positions=positions,
            extents=extents,
            valid=repeat(at != NEVER, "b n -> b (n s)", s=tokens.shape[2] * tokens.shape[3]),
        )
        return Memory(parts=(part,), size=size)


def _one_zero(state: State) -> State:
    """Return a state that keeps one latent, all zero: whence the part has its shapes."""
    batch, channels, _, height, width = state["latents"].shape
    latents = state["latents"].new_zeros(batch, channels, 1, height, width)
    return {**state, "at": state["at"].new_zeros(batch, 1), "latents": latents}


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


class WindowCompressor(NewestCompressor[Window]):
    """One part, `window-<n>`: the DiT's own tokens of the newest n latents, oldest first.

    It holds what is still on the screen, so it ends at a hard cut: latents that show anything from
    before the newest cut are dropped, all of them where the next latent begins another shot. What
    follows the history is not looked at: a later cut drops nothing.

    Source: method.md §5: beside a compressed memory, 3 latents give continuous shots.
    """

    def __init__(self, spec: Window, fit: Fit) -> None:
        name = f"window-{spec.latents}"
        super().__init__(spec, fit, name=name, newest=spec.latents, rate=UNCOMPRESSED)

    @classmethod
    def context_length(cls, spec: Window, geometry: Geometry, size: Size3) -> Length:
        """Return the tokens of n uncompressed latents; a bound where they may end at a cut."""
        cells = UNCOMPRESSED.token_grid(size, geometry.patch)
        tokens = min(size.time, spec.latents) * cells.height * cells.width
        return Length(tokens=tokens, exact=spec.across_cuts)

    def picked(self, chunk: History) -> Tensor:
        """Return that every latent is a candidate, `[B, T]`."""
        return torch.ones(chunk.batch, chunk.size.time, dtype=torch.bool)

    def dropped(self, at: Tensor, chunk: History) -> Tensor:
        """Return which latents show something from before the newest cut, `[B, n]`."""
        if self.spec.across_cuts:
            return super().dropped(at, chunk)
        if len(chunk.cuts) != chunk.batch:
            announce_no_cuts()
            return super().dropped(at, chunk)
        end = chunk.offset + chunk.size.time
        shots = [
            max([0, *(n for n in row if n <= end)]) for row in shot_starts(self.geometry, chunk)
        ]
        return at < torch.tensor(shots)[:, None]

    def cut(self, state: State) -> State:
        """Return the state with an empty window: what comes next is another shot."""
        if self.spec.across_cuts:
            return state
        kept = own_copy(state["latents"][:, :, :0])
        return {**state, "at": own_copy(state["at"][:, :0]), "latents": kept}


@functools.cache
def announce_no_cuts() -> None:
    """Log once that a window cannot end at cuts."""
    logging.getLogger(__name__).warning(
        "nobody looked for hard cuts in this history: the window also holds latents from before "
        "one (cache with cache.cuts=true to drop them, or set across_cuts=true)"
    )


class KeyframesCompressor(NewestCompressor[Keyframes]):
    """One part, `keyframes`: the DiT's own tokens of the newest keyframes, oldest first.

    The first latent is a keyframe, and from there every `every`-th; with `shots` the count starts
    again at the first latent that lies wholly behind a cut.
    """

    def __init__(self, spec: Keyframes, fit: Fit) -> None:
        super().__init__(spec, fit, name="keyframes", newest=spec.newest, rate=spec.rate)

    @classmethod
    def context_length(cls, spec: Keyframes, geometry: Geometry, size: Size3) -> Length:
        """Return the number of tokens; a bound with `shots`, since cuts are not known before."""
        cells = spec.rate.token_grid(size, geometry.patch)
        count = size.time
        if not spec.shots:
            count = min(count, ceil_div(count, spec.every) if spec.every else 1)
        frames = min(count, spec.newest)
        return Length(tokens=frames * cells.height * cells.width, exact=not spec.shots)

    def picked(self, chunk: History) -> Tensor:
        """Return which latents of a chunk are keyframes, `[B, T]`.

        Raises:
            UserError: `shots` is on and nobody looked for cuts in the history.
        """
        end = chunk.offset + chunk.size.time
        shot = torch.zeros(chunk.batch, end, dtype=torch.int64)
        for row, firsts in enumerate(self._shots(chunk)):
            inside = [latent for latent in firsts if 0 < latent < end]
            shot[row, inside] = torch.tensor(inside, dtype=torch.int64)
        into_shot = (torch.arange(end) - shot.cummax(dim=1).values)[:, chunk.offset :]
        return into_shot % self.spec.every == 0 if self.spec.every else into_shot == 0

    def _shots(self, chunk: History) -> list[list[int]]:
        """Return the first latents of the shots of each sample, counted in the window."""
        if not self.spec.shots:
            return [[] for _ in range(chunk.batch)]
        if len(chunk.cuts) != chunk.batch:
            raise UserError(
                "keyframes of shots need the times of cuts, which this history has not: "
                "cache with cache.cuts=true, or set shots=false"
            )
        return shot_starts(self.geometry, chunk)


def shot_starts(geometry: Geometry, chunk: History) -> list[list[int]]:
    """Return the first latents behind the cuts of each sample of a window, counted in it."""
    pairs = zip(chunk.cuts, chunk.start.tolist(), strict=True)
    return [[first_latent(geometry, cut) - start for cut in cuts] for cuts, start in pairs]


def first_latent(geometry: Geometry, seconds: float) -> int:
    """Return the first latent of a video that shows nothing from before a time.

    Latent i ≥ 1 shows frames s(i − 1) + 1 … si at a time stride s, latent 0 frame 0.
    """
    frame = math.ceil(round(geometry.fps * seconds, 6))
    return 1 + ceil_div(frame - 1, geometry.vae_stride.time) if frame > 0 else 0
