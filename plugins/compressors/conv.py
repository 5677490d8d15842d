"""The paper's encoder: the DiT's own tokens of a small video, plus convs on the full one."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from ...core.compressor import Compressor, State
from ...core.fit import Fit, Length, Needs
from ...core.grid import Geometry, Size3
from ...core.history import History
from ...core.memory import Memory
from ...core.parts import grid_part
from ...kernels.reference import out_tokens
from ..specs import Conv
from .conv_branches import HrBranch, LrBranch
from .conv_layers import token_grid


class ConvCompressor(Compressor[Conv]):
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

    Source: method.md §2.
    """

    def __init__(self, spec: Conv, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.settles = not (spec.hr and spec.attention == "full")
        self.fit_digest = fit.digest
        self.lr = LrBranch(spec, fit) if spec.lr else None
        self.hr = HrBranch(spec, fit.geometry) if spec.hr else None

    @classmethod
    def needs(cls, spec: Conv) -> Needs:
        """Give the LR rate and HR latents (or pixels), each only where its branch is on."""
        pixels = spec.hr and spec.stem == "pixels"
        rates = frozenset({spec.rate} if spec.lr else ())
        return Needs(rates=rates, pixels=pixels, hr=spec.hr and not pixels)

    @classmethod
    def context_length(cls, spec: Conv, geometry: Geometry, size: Size3) -> Length:
        """Give the exact number of tokens: the cells of the token grid."""
        return Length(tokens=token_grid(spec, geometry, size).cells)

    @classmethod
    def features(cls, spec: Conv) -> dict[str, int]:
        """Give the width of `hidden`, the last one of the convs, where `features` is on."""
        return {f"{part_name(spec)}.hidden": spec.channels[-1]} if spec.features else {}

    def forward(self, history: History) -> Memory:
        """Give the memory of a whole window; shorter samples go on with their own last latent."""
        size = history.size
        frames = self.spec.rate.time_tokens(size.time)
        # An empty history runs on one zero latent, so that the graph still holds every parameter.
        shown = max(frames, 1)
        lr = self.lr.whole(history, shown) if self.lr else None
        hidden = self.hr.whole(history, shown) if self.hr else None
        tokens = self._tokens(lr, hidden, size)[:, :frames]
        hidden = None if hidden is None else hidden[:, :frames]
        return self._memory(tokens, hidden, size, history.start, history.length, skip=0)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens of the blocks that it completed.

        Raises:
            ValueError: the chunk does not follow what the state has seen.
        """
        rate, old = self.spec.rate, state or {}
        before = int(old["seen"][0]) if state else 0
        if chunk.offset != before:
            raise ValueError(f"a chunk from latent {chunk.offset} after {before} were seen")
        size = attrs.evolve(chunk.size, time=before + chunk.size.time)
        ready = rate.settled_latents(size.time) - rate.settled_latents(before)
        seen = torch.tensor([size.time, size.height, size.width])
        new: State = {**old, "seen": seen, "start": old.get("start", chunk.start.clone())}
        lr = self.lr.take(new, chunk, before) if self.lr else None
        hidden = self.hr.take(new, chunk, ready) if self.hr else None
        if not (ready and self.settles):
            return new, Memory(size=size)
        length = torch.full_like(chunk.length, size.time)
        skip = rate.settled_tokens(before)
        tokens = self._tokens(lr, hidden, size)
        return new, self._memory(tokens, hidden, size, new["start"], length, skip)

    def pending(self, state: State) -> Memory:
        """Give the provisional token frame of an incomplete block; with full attention, all."""
        time, height, width = state["seen"].tolist()
        size = Size3(time=time, height=height, width=width)
        settled = self.spec.rate.settled_tokens(time)
        missing = self.spec.rate.time_tokens(time) - settled
        if self.settles and not missing:
            return Memory(size=size)
        lr = self.lr.rest(state, missing) if self.lr else None
        hidden = self.hr.rest(state, missing) if self.hr else None
        length = torch.full_like(state["start"], time)
        skip = settled if self.settles else 0
        tokens = self._tokens(lr, hidden, size)
        return self._memory(tokens, hidden, size, state["start"], length, skip)

    def _tokens(self, lr: Tensor | None, hidden: Tensor | None, size: Size3) -> Tensor:
        """Give the tokens `[B, T', S, D]` of the branches that are on, added."""
        lr_tokens = self.lr.tokens(lr, size) if self.lr and lr is not None else None
        if self.hr and hidden is not None:
            return out_tokens(hidden, self.hr.out.weight, self.hr.out.bias, lr_tokens)
        assert lr_tokens is not None  # the spec refuses both branches off
        return lr_tokens

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
            grid=token_grid(self.spec, self.geometry, size),
            start=start,
            length=length,
            skip=skip,
            features={"hidden": hidden} if self.spec.features and hidden is not None else None,
        )
        return Memory(parts=(part,), size=size)


def part_name(spec: Conv) -> str:
    """Give the name of the part that the compressor makes."""
    return f"conv-{spec.rate}"
