"""A full-transformer encoder: LR tokens as in `conv`, attention alone on the full-size latents."""

from __future__ import annotations

from torch import Tensor

from ...core.compressor import State
from ...core.fit import Fit, Length, Needs
from ...core.grid import Geometry, Size3
from ...core.history import History
from ...core.memory import Memory
from ...core.parts import grid_part
from ...core.streams import Run, Streamed, take_blocks, waiting
from ...kernels.reference import out_tokens
from ..compressor_specs import Transformer
from ..specs import Conv
from .conv_branches import LrBranch
from .transformer_layers import HrTransformer


class TransformerCompressor(Streamed[Transformer]):
    """LR tokens (the DiT's first projection of LR latents) + features of a causal transformer.

    One part, `transformer-<rate>`, tokens in time, row, column order. With both branches the HR
    output starts at zero, so that a new encoder gives the DiT's own tokens. Latents are taken to
    the dtype of the weights. With `features` the part brings the last hidden states, as `hidden`.

    The state holds the latents that complete no block, the last LR latent, and a window of keys
    and values a layer; it is constant once `window` memory frames were seen.
    """

    def __init__(self, spec: Transformer, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.lr = LrBranch(Conv(rate=spec.rate, hr=False), fit) if spec.lr else None
        self.hr = HrTransformer(spec, fit.geometry) if spec.hr else None

    @classmethod
    def needs(cls, spec: Transformer) -> Needs:
        """Give the LR rate and HR latents, each only where its branch is on."""
        return Needs(rates=frozenset({spec.rate} if spec.lr else ()), hr=spec.hr)

    @classmethod
    def context_length(cls, spec: Transformer, geometry: Geometry, size: Size3) -> Length:
        """Give the exact number of tokens: the cells of the token grid."""
        return Length(tokens=spec.rate.token_grid(size, geometry.patch).cells)

    @classmethod
    def features(cls, spec: Transformer) -> dict[str, int]:
        """Give the width of `hidden`, that of the layers, where `features` is on."""
        width = spec.heads * spec.head_width
        return {f"{part_name(spec)}.hidden": width} if spec.features else {}

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens of the blocks that it completed.

        Raises:
            ValueError: the chunk does not follow what the state has seen, or its LR latents are
                not there or not as many as must travel with it.
        """
        rate = self.spec.rate
        if self.lr and rate not in chunk.lr:
            raise ValueError(f"{part_name(self.spec)} needs LR latents of rate {rate}")
        new, run = take_blocks(state, chunk, rate.time)
        lr = self.lr.take(new, chunk, chunk.offset) if self.lr else None
        memory, windows = self._encode(run, lr, state or {})
        return {**new, **windows}, memory

    def pending(self, state: State) -> Memory:
        """Give the provisional token frame of an incomplete block, its last latent repeated."""
        run = waiting(state, self.spec.rate.time)
        lr = self.lr.rest(state, 1) if self.lr else None
        return self._encode(run, lr, state)[0]

    def _encode(self, run: Run, lr: Tensor | None, past: State) -> tuple[Memory, State]:
        """Give the memory of a run with the LR latents of its frames, and the windows after it."""
        if not run.latents.shape[2]:
            return Memory(size=run.seen), {}
        lr_tokens = self.lr.tokens(lr, run.seen) if self.lr and lr is not None else None
        if not self.hr:
            assert lr_tokens is not None  # the spec refuses both branches off
            return self._memory(lr_tokens, None, run), {}
        hidden, windows = self.hr(run.latents, run.first, past)
        tokens = out_tokens(hidden, self.hr.out.weight, self.hr.out.bias, lr_tokens)
        return self._memory(tokens, hidden, run), windows

    def _memory(self, tokens: Tensor, hidden: Tensor | None, run: Run) -> Memory:
        rate, patch = self.spec.rate, self.geometry.patch
        part = grid_part(
            part_name(self.spec), tokens, rate=rate, size=run.seen, patch=patch,
            grid=rate.token_grid(run.seen, patch), start=run.start, length=run.length,
            skip=rate.settled_tokens(run.first),
            features={"hidden": hidden} if self.spec.features and hidden is not None else None,
        )  # fmt: skip
        return Memory(parts=(part,), size=run.seen)


def part_name(spec: Transformer) -> str:
    """Give the name of the part of such an encoder."""
    return f"transformer-{spec.rate}"
