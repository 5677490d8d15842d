"""The paper's encoder: the DiT's own tokens of a small video, plus convs on the full one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ...core.interfaces.compressor import Fit, Length, Needs, State, pad_to
from ...core.interfaces.streaming import TwoPartStep, appended, own_copy, seen_size
from ...core.values.grid import Geometry, Rounding, Size3
from ...core.values.history import History
from ...core.values.memory import Memory, grid_part
from .conv_layers import AttentionStack, ConvTrunk, PixelStem, TokenHead
from .frames import repeat_own_last
from .specs import Conv
from .tokens import LrBranch


class ConvCompressor(TwoPartStep[Conv]):
    """LR tokens (the DiT's first projection of LR latents) + HR features (convs, attention, 1×1).

    One part, `conv-<rate>`, tokens in time, row, column order. With both branches the HR output
    starts at zero, so that a new encoder gives the DiT's own tokens (Only-LR). Latents are taken
    to the dtype of the weights. With `features` the part also brings the HR branch's last hidden
    states, those before the 1×1 conv, as its feature `hidden` (method.md §5: second-to-last
    features in the seed, last hidden states in V6).

    The state holds the latents that complete no block (fewer than the time rate), the last LR
    latent, a tail a conv and a window of keys and values a layer: it grows until `window` memory
    frames were seen and is constant then. With full attention nothing settles: it keeps the
    features and LR latents of all complete memory frames.

    Convs, attention of a chunk, and the tokens of both branches run by plain torch or by Triton:
    `spec.kernels` says which, numbers are the same up to rounding, and a state goes on under
    either. On a GPU `longtake.authors.GraphedStep` replays the step as one graph.

    Source: method.md §2.
    """

    def __init__(self, spec: Conv, fit: Fit) -> None:
        super().__init__(spec, fit)
        full = spec.hr and spec.attention == "full"
        self.settles = not full
        self.lr = (
            LrBranch(part_name(spec), spec.rate, fit, rounding=rounding(spec), keep_all=full)
            if spec.lr
            else None
        )
        self.hr = HrBranch(spec, fit.geometry) if spec.hr else None

    @classmethod
    def needs(cls, spec: Conv) -> Needs:
        """Return the LR rate and HR latents (or pixels), each only where its branch is on."""
        pixels = spec.hr and spec.stem == "pixels"
        rates = frozenset({spec.rate} if spec.lr else ())
        return Needs(rates=rates, pixels=pixels, hr=spec.hr and not pixels)

    @classmethod
    def context_length(cls, spec: Conv, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens: the cells of the token grid."""
        return Length(tokens=token_grid(spec, geometry, size).cells)

    @classmethod
    def features(cls, spec: Conv) -> dict[str, int]:
        """Return the width of `hidden`, the last one of the convs, where `features` is on."""
        return {f"{part_name(spec)}.hidden": spec.channels[-1]} if spec.features else {}

    def forward(self, history: History) -> Memory:
        """Return the memory of a whole window; shorter samples go on with their own last latent."""
        size = history.size
        frames = self.spec.rate.time_tokens(size.time)
        # An empty history runs on one zero latent, so that the graph still holds every parameter.
        shown = max(frames, 1)
        lr = self.lr.whole(history, shown) if self.lr else None
        hidden = self.hr.whole(history, shown) if self.hr else None
        tokens = self._tokens(lr, hidden, size)[:, :frames]
        hidden = None if hidden is None else hidden[:, :frames]
        return self._memory(tokens, hidden, size, history.start, history.length, skip=0)

    def compute(self, state: State, chunk: History) -> tuple[State, dict[str, Tensor]]:
        """Return the state after a chunk, and tokens (and features) of the blocks it completed.

        Raises:
            ValueError: LR latents or pixels are not there, or not as many as must travel with it.
        """
        rate, new, size = self.spec.rate, dict(state), seen_size(state)
        ready = rate.settled_latents(size.time) - rate.settled_latents(chunk.offset)
        lr = self.lr.take(new, chunk) if self.lr else None
        hidden = self.hr.take(new, chunk, ready) if self.hr else None
        if not (ready and self.settles):
            return new, {}
        settled = {"tokens": self._tokens(lr, hidden, size)}
        if self.spec.features and hidden is not None:
            settled["hidden"] = hidden
        return new, settled

    def place(self, state: State, chunk: History, settled: Mapping[str, Tensor]) -> Memory:
        """Return the tokens of the blocks that a chunk completed, where they are in the video."""
        size = seen_size(state)
        if not settled:
            return Memory(size=size)
        length = torch.full_like(chunk.length, size.time)
        skip = self.spec.rate.settled_tokens(chunk.offset)
        hidden = settled.get("hidden")
        return self._memory(settled["tokens"], hidden, size, state["start"], length, skip)

    def pending(self, state: State) -> Memory:
        """Return the provisional token frame of an incomplete block; with full attention, all."""
        size = seen_size(state)
        settled = self.spec.rate.settled_tokens(size.time)
        missing = self.spec.rate.time_tokens(size.time) - settled
        if self.settles and not missing:
            return Memory(size=size)
        lr = self.lr.rest(state, missing) if self.lr else None
        hidden = self.hr.rest(state, missing) if self.hr else None
        length = torch.full_like(state["start"], size.time)
        skip = settled if self.settles else 0
        tokens = self._tokens(lr, hidden, size)
        return self._memory(tokens, hidden, size, state["start"], length, skip)

    def check_device(self, device: torch.device) -> None:
        """Refuse a device on which kernels that were asked for cannot run.

        Raises:
            UserError: `kernels` is triton, and it cannot run there.
        """
        if self.hr:
            self.hr.trunk.check_device(device)

    def _tokens(self, lr: Tensor | None, hidden: Tensor | None, size: Size3) -> Tensor:
        """Return the tokens `[B, T', S, D]` of the branches that are on, added."""
        if self.hr and hidden is not None:
            if self.lr and lr is not None:
                return self.hr.out.with_lr(hidden, self.lr, lr, size)
            tokens: Tensor = self.hr.out(hidden)
            return tokens
        assert self.lr and lr is not None  # the spec refuses both branches off
        return self.lr.tokens(lr, size)

    def _memory(
        self,
        tokens: Tensor,
        hidden: Tensor | None,
        size: Size3,
        start: Tensor,
        length: Tensor,
        skip: int,
    ) -> Memory:
        part = grid_part(
            part_name(self.spec),
            tokens,
            rate=self.spec.rate,
            size=size,
            patch=self.geometry.patch,
            start=start,
            length=length,
            skip=skip,
            rounding=rounding(self.spec),
            features={"hidden": hidden} if self.spec.features and hidden is not None else None,
        )
        return Memory(parts=(part,), size=size)


def part_name(spec: Conv) -> str:
    """Return the name of the part that the compressor makes."""
    return f"conv-{spec.rate}"


def rounding(spec: Conv) -> Rounding:
    """Return what an incomplete cell at the right or the bottom does."""
    return cast(Rounding, spec.rounding)


def token_grid(spec: Conv, geometry: Geometry, size: Size3) -> Size3:
    """Return the grid of memory tokens of a history of `size` latents."""
    return spec.rate.token_grid(size, geometry.patch, rounding(spec))


class HrBranch(nn.Module):
    """Full-size latents → convs → attention: features `[B, T', S, C]` of S = rows × columns.

    With a pixel stem, its features of frames stand for the latents.

    State: `waiting`, the latents of the incomplete block; `conv.i`, a tail a conv; `attention.i`,
    keys and values of the last window − 1 memory frames. With full attention `hidden`, the convs'
    features of all complete memory frames, instead.
    """

    def __init__(self, spec: Conv, geometry: Geometry) -> None:
        super().__init__()
        self.spec = spec
        self.geometry = geometry
        self.full = spec.attention == "full"
        self.stem = PixelStem(spec.channels[0], geometry) if spec.stem == "pixels" else None
        self.trunk = ConvTrunk(spec, geometry)
        self.attention = AttentionStack(spec)
        # alone, tokens that start at zero would blow up under the DiT's norms
        self.out = TokenHead(spec.channels[-1], geometry.width, zero=spec.lr, kernels=spec.kernels)

    def whole(self, history: History, frames: int) -> Tensor:
        """Return the features of `frames` memory frames of a window."""
        rate = self.spec.rate
        latents = repeat_own_last(self._read(history), history.length, 1 + (frames - 1) * rate.time)
        hidden, _ = self.convolve(latents, {})
        real = None
        if history.ragged:
            counts = torch.tensor([rate.time_tokens(int(n)) for n in history.length])
            real = torch.arange(frames)[None] < counts[:, None]
        return self.attend(hidden, {}, real)[0]

    def take(self, state: State, chunk: History, ready: int) -> Tensor | None:
        """Put a chunk into `state`; return the features that the first `ready` of all complete."""
        waiting = appended(state.get("waiting"), self._read(chunk), dim=2)
        state["waiting"] = own_copy(waiting[:, :, ready:])
        if not ready:
            return None
        hidden, tails = self.convolve(waiting[:, :, :ready], state)
        if self.full:
            state.update(tails, hidden=own_copy(appended(state.get("hidden"), hidden, dim=1)))
            return None
        hidden, windows = self.attend(hidden, state)
        state.update(tails | windows)
        return hidden

    def rest(self, state: State, missing: int) -> Tensor:
        """Return the features of the incomplete block, if `missing`; full attention: of all."""
        parts = [state["hidden"]] if self.full else []
        if missing:
            waiting = state["waiting"]
            length = torch.full_like(state["start"], waiting.shape[2])
            block = repeat_own_last(waiting, length, self.spec.rate.time)
            parts.append(self.convolve(block, state)[0])
        return self.attend(torch.cat(parts, dim=1), state)[0]

    def _read(self, history: History) -> Tensor:
        """Return what the convs read `[B, C, T, H, W]`: the latents, or the stem's features."""
        return history.latents if self.stem is None else self.stem(history)

    def convolve(
        self, latents: Tensor, past: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the convs' features `[B, T', S, C]` of complete blocks, and the convs' tails."""
        rate, patch = self.spec.rate, self.geometry.patch
        time, height, width = latents.shape[2:]
        grid = token_grid(self.spec, self.geometry, Size3(time=time, height=height, width=width))
        latents = pad_to(latents, rate.height * patch.height, rate.width * patch.width)
        hidden, tails = self.trunk(latents.to(self.out.weight.dtype), past)
        cells = hidden[..., : grid.height, : grid.width]
        if not self.trunk.by_triton(latents):
            # laid out by channel also where rounding cuts: layers behind sum in the same order
            cells = cells.contiguous()
        return rearrange(cells, "b c t h w -> b t (h w) c"), tails

    def attend(
        self, hidden: Tensor, past: Mapping[str, Tensor], real: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the features after attention, and its window to go on from."""
        features: tuple[Tensor, dict[str, Tensor]] = self.attention(hidden, past, real)
        return features
