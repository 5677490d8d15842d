"""An external high-compression VAE on pixels, projected into the DiT's hidden space."""

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
from ...core.streams import joined, own
from ..patchifier_specs import VaeProj
from .vae_proj_blocks import Blocks, rate_of
from .vae_proj_files import number_type, projection
from .vae_proj_model import VideoVae


class VaeProjCompressor(Compressor[VaeProj]):
    """Pixels → frozen VAE (LTX's: 8 frames of 32×32 pixels a cell, 128 channels) → linear → tokens.

    One part, `vae-proj`, on the grid of memory frames that `conv` has at the rate the VAE's cells
    make (2×2×2 for 32×32×8 on a 4×8×8 VAE with 2×2 patches). Only the projection trains and is
    saved; it begins with tokens as large as the DiT's own.

    diffusers gives these VAEs no feature cache to stream with, so the video is encoded in blocks of
    `block` cells on an absolute grid, each with the frame before it: each block is to the VAE a
    short video of 1 + 8·block frames. A block gives its tokens when it is complete; before that
    they are provisional, the last frame repeated to a whole cell. Latents are those of one pass
    over the video only within the first block; that holds for causal and other VAEs alike.

    The state holds the frames of the block that is not complete, and one before them.

    Source: method.md §6 (V6: an external high-compression VAE with a projection).
    """

    def __init__(self, spec: VaeProj, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.rate = rate_of(spec, fit.geometry)
        self.blocks = Blocks.of(spec, fit.geometry)
        self.vae = VideoVae.of(spec)
        self.vae.check(spec)
        self.project = projection(self.vae.channels, fit)

    @classmethod
    def needs(cls, spec: VaeProj) -> Needs:
        """Give pixels; of latents only the shape is read."""
        return Needs(pixels=True, hr=False)

    @classmethod
    def context_length(cls, spec: VaeProj, geometry: Geometry, size: Size3) -> Length:
        """Give the exact number of tokens: the VAE's cells, rounded up.

        Raises:
            UserError: the VAE's cells are no whole number of the DiT's.
        """
        return Length(tokens=rate_of(spec, geometry).token_grid(size, geometry.patch).cells)

    def forward(self, history: History) -> Memory:
        """Give the memory of a whole window; each sample's last block ends with its own frames."""
        pixels = self.blocks.checked(history)
        counts = history.length.tolist() if history.ragged else [history.size.time]
        if len(counts) == 1:
            tokens = self._tokens(pixels, counts[0], history.size, first=True)
        else:
            each = zip(pixels.split(1), counts, strict=True)
            alone = [self._tokens(x, n, history.size, first=True) for x, n in each]
            tokens = _stacked(alone, self.rate.time_tokens(history.size.time))
        return self._memory(tokens, history.size, history.start, history.length, 0)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; give the tokens of the blocks that it completed.

        Raises:
            ValueError: the chunk does not follow what the state has seen, or lacks its pixels.
        """
        old = state or {}
        before = int(old["seen"][0]) if state else 0
        if chunk.offset != before:
            raise ValueError(f"a chunk from latent {chunk.offset} after {before} were seen")
        size = attrs.evolve(chunk.size, time=before + chunk.size.time)
        done, ready = self.blocks.complete(before), self.blocks.complete(size.time)
        frames = joined(old.get("frames"), self.blocks.checked(chunk), dim=2)
        kept = self.blocks.frames * (ready - done)
        new: State = {
            "seen": torch.tensor([size.time, size.height, size.width]),
            "start": old.get("start", chunk.start.clone()),
            "frames": own(frames[:, :, kept:]),
        }
        if ready == done:
            return new, Memory(size=size)
        latents = self.blocks.latents * (ready - done) + 1
        tokens = self._tokens(frames[:, :, : kept + 1], latents, size, first=done == 0)
        length = torch.full_like(chunk.length, size.time)
        skip = self.blocks.tokens * done + (done > 0)
        return new, self._memory(tokens, size, new["start"], length, skip)

    def pending(self, state: State) -> Memory:
        """Give the provisional tokens of the block that is not complete."""
        time, height, width = state["seen"].tolist()
        size = Size3(time=time, height=height, width=width)
        done = self.blocks.complete(time)
        latents = time - self.blocks.latents * done
        if done and latents == 1:  # the frame before the next block, and nothing of it
            return Memory(size=size)
        tokens = self._tokens(state["frames"], latents, size, first=done == 0)
        length = torch.full_like(state["start"], time)
        skip = self.blocks.tokens * done + (done > 0)
        return self._memory(tokens, size, state["start"], length, skip)

    def _tokens(self, frames: Tensor, latents: int, size: Size3, *, first: bool) -> Tensor:
        """Give tokens `[B, T', S, D]` of frames, the first of which stands for one latent.

        Args:
            frames: `[B, 3, F, P, Q]`, of `latents` latents or more; the first is the frame before
                the block, or frame 0 of the video (`first`), which has tokens of its own.
            latents: how many of them count.
            size: of the history.
            first: see frames.
        """
        grid = self.rate.token_grid(size, self.geometry.patch)
        dtype = number_type(self.spec.dtype, self.project.weight)
        parts = [
            self.vae.encode(block, dtype).flatten(3).permute(0, 2, 3, 1)
            for block in self.blocks.cut(frames, latents)
        ]
        cells = [x if first and i == 0 else x[:, 1:] for i, x in enumerate(parts)]
        # An empty history runs on one zero cell, so that the graph still holds every parameter.
        blank = frames.new_zeros(
            frames.shape[0], 1, grid.height * grid.width, self.vae.channels, dtype=dtype
        )
        whole = torch.cat(cells, dim=1) if cells else blank
        tokens: Tensor = self.project(whole.to(self.project.weight.dtype))
        return tokens if cells else tokens[:, :0]

    def _memory(
        self, tokens: Tensor, size: Size3, start: Tensor, length: Tensor, skip: int
    ) -> Memory:
        part = grid_part(
            "vae-proj",
            tokens,
            rate=self.rate,
            size=size,
            patch=self.geometry.patch,
            grid=self.rate.token_grid(size, self.geometry.patch),
            start=start,
            length=length,
            skip=skip,
        )
        return Memory(parts=(part,), size=size)


def _stacked(tokens: list[Tensor], frames: int) -> Tensor:
    """Give tokens of single samples as a batch, zeros behind the shorter."""
    padded = [
        torch.cat([x, x.new_zeros(1, frames - x.shape[1], *x.shape[2:])], dim=1) for x in tokens
    ]
    return torch.cat(padded)
