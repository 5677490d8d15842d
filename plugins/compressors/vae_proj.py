"""An external high-compression VAE on pixels, projected into the DiT's hidden space."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor

from ...core.errors import UserError
from ...core.interfaces.codec import from_bytes
from ...core.interfaces.compressor import Compressor, Fit, Length, Needs, State, pad_to
from ...core.interfaces.streaming import advance, appended, own_copy, seen_size
from ...core.tools.hub import first_line
from ...core.values.grid import STEPS, Geometry, Rate, Size3
from ...core.values.history import History
from ...core.values.memory import Memory, grid_part
from ...core.values.shapes import Bytes
from .frames import checked_pixels, fill_frames, repeat_ends
from .frozen import model_folder, number_type, projection, read_config
from .specs import VaeProj

CLASSES = ("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video")


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
        self.blocks = BlockGrid.of(spec, fit.geometry)
        self.vae = VideoVae.of(spec)
        self.vae.check(spec)
        self.project = projection(self.vae.channels, fit)

    @classmethod
    def needs(cls, spec: VaeProj) -> Needs:
        """Return pixels; of latents only the shape is read."""
        return Needs(pixels=True, hr=False)

    @classmethod
    def context_length(cls, spec: VaeProj, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens: the VAE's cells, rounded up.

        Raises:
            UserError: the VAE's cells are no whole number of the DiT's.
        """
        return Length(tokens=rate_of(spec, geometry).token_grid(size, geometry.patch).cells)

    def forward(self, history: History) -> Memory:
        """Return the memory of a window; each sample's last block ends with its own frames."""
        pixels = self.blocks.pixels(history)
        counts = history.length.tolist() if history.ragged else [history.size.time]
        if len(counts) == 1:
            tokens = self._tokens(pixels, counts[0], history.size, first=True)
        else:
            frames = self.rate.time_tokens(history.size.time)
            samples = zip(pixels.split(1), counts, strict=True)
            alone = [self._tokens(x, n, history.size, first=True) for x, n in samples]
            tokens = torch.cat([F.pad(x, (0, 0, 0, 0, 0, frames - x.shape[1])) for x in alone])
        return self._memory(tokens, history.size, history.start, history.length, 0)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return the tokens of the blocks that it completed.

        Raises:
            ValueError: the chunk does not follow what the state has seen, or lacks its pixels.
        """
        new = advance(state, chunk)
        size = seen_size(new)
        done, ready = self.blocks.complete(chunk.offset), self.blocks.complete(size.time)
        frames = appended(new.get("frames"), self.blocks.pixels(chunk), dim=2)
        taken = self.blocks.frames * (ready - done)
        new["frames"] = own_copy(frames[:, :, taken:])
        if ready == done:
            return new, Memory(size=size)
        latents = self.blocks.latents * (ready - done) + 1
        tokens = self._tokens(frames[:, :, : taken + 1], latents, size, first=done == 0)
        length = torch.full_like(chunk.length, size.time)
        skip = self.blocks.tokens * done + (done > 0)
        return new, self._memory(tokens, size, new["start"], length, skip)

    def pending(self, state: State) -> Memory:
        """Return the provisional tokens of the block that is not complete."""
        size = seen_size(state)
        done = self.blocks.complete(size.time)
        latents = size.time - self.blocks.latents * done
        if done and latents == 1:  # the frame before the next block, and nothing of it
            return Memory(size=size)
        tokens = self._tokens(state["frames"], latents, size, first=done == 0)
        length = torch.full_like(state["start"], size.time)
        skip = self.blocks.tokens * done + (done > 0)
        return self._memory(tokens, size, state["start"], length, skip)

    def _tokens(self, frames: Tensor, latents: int, size: Size3, *, first: bool) -> Tensor:
        """Return tokens `[B, T', S, D]` of frames, the first of which stands for one latent.

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
            rearrange(self.vae.encode(block, dtype), "b c t h w -> b t (h w) c")
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
            start=start,
            length=length,
            skip=skip,
        )
        return Memory(parts=(part,), size=size)


def rate_of(spec: VaeProj, geometry: Geometry) -> Rate:
    """Return the rate at which the VAE's cells stand over latents and patch cells.

    Raises:
        UserError: a cell of the VAE is not 1, 2, 4 or 8 of the DiT's.
    """
    stride, patch = geometry.vae_stride, geometry.patch
    return Rate(
        height=_steps(spec, spec.space, stride.height * patch.height, "pixel rows of a patch"),
        width=_steps(spec, spec.space, stride.width * patch.width, "pixel columns of a patch"),
        time=_steps(spec, spec.time, stride.time, "frames of a latent"),
    )


def _steps(spec: VaeProj, ours: int, theirs: int, what: str) -> int:
    if ours % theirs or ours // theirs not in STEPS:
        raise UserError(
            f"vae-proj: a cell of {spec.time}×{spec.space}×{spec.space} must be 1, 2, 4 or 8 times "
            f"the {theirs} {what} of this DiT"
        )
    return ours // theirs


@frozen(kw_only=True)
class BlockGrid:
    """The absolute grid of blocks: block b holds latents n·b + 1 … n·(b + 1), the first also 0.

    Attributes:
        tokens: memory frames of a block.
        latents: n, latents of a block.
        frames: video frames of a block.
        cell: video frames of a memory frame.
        stride: pixels to a latent cell.
    """

    tokens: int
    latents: int
    frames: int
    cell: int
    stride: Size3

    @classmethod
    def of(cls, spec: VaeProj, geometry: Geometry) -> BlockGrid:
        """Return the grid of a spec on a backbone."""
        stride = geometry.vae_stride
        return cls(
            tokens=spec.block,
            latents=spec.block * spec.time // stride.time,
            frames=spec.block * spec.time,
            cell=spec.time,
            stride=stride,
        )

    def complete(self, latents: int) -> int:
        """Return how many blocks are complete after so many latents."""
        return max(0, latents - 1) // self.latents

    def cut(self, frames: Bytes, latents: int) -> Iterator[Bytes]:
        """Yield 1 + cell·k frames a block, the first one the frame before; the last one filled up.

        Args:
            frames: the first stands for one latent (see `VaeProjCompressor._tokens`).
            latents: those that the frames count for; frames beyond are not read.
        """
        real = 1 + self.stride.time * (latents - 1) if latents else 0
        for first in range(0, max(real - 1, min(real, 1)), self.frames):
            block = frames[:, :, first : min(first + self.frames + 1, real)]
            yield repeat_ends(block, after=-(block.shape[2] - 1) % self.cell)

    def pixels(self, history: History) -> Bytes:
        """Return the pixels of a window or chunk, filled to whole latent cells.

        Raises:
            ValueError: it has none, or not those of its latents.
        """
        pixels, size = checked_pixels(history, self.stride, "vae-proj"), history.size
        return fill_frames(pixels, size.height * self.stride.height, size.width * self.stride.width)


@frozen(kw_only=True)
class VideoVae:
    """A VAE on disk, loaded when first used; its weights are no parameters of the compressor.

    Attributes:
        folder: with config.json and safetensors files.
        kind: diffusers' class.
        channels: of a cell.
        space: pixels to a cell, down and across.
    """

    folder: Path
    kind: str
    channels: int
    space: int

    @classmethod
    def of(cls, spec: VaeProj) -> VideoVae:
        """Find the VAE that a spec names, reading its config only.

        Raises:
            UserError: there is none, or it is of another class.
        """
        folder = model_folder(
            "vae-proj", spec.weights, spec.subfolder, "Lightricks/LTX-Video (subfolder: vae)"
        )
        config = read_config("vae-proj", folder, "_class_name", "latent_channels")
        kind = str(config["_class_name"])
        if kind not in CLASSES:
            raise UserError(f"vae-proj reads {' and '.join(CLASSES)}, but {folder} is of {kind}")
        return cls(
            folder=folder, kind=kind, channels=int(config["latent_channels"]), space=spec.space
        )

    @torch.no_grad()
    def encode(self, frames: Bytes, dtype: torch.dtype) -> Tensor:
        """Return the normalised means `[B, C, 1 + k, h, w]` of 1 + 8k frames (at 8 to a cell).

        Last row and column are repeated to whole cells.
        """
        device = frames.device
        vae = _loaded(self.folder, self.kind, dtype, str(device))
        pixels = pad_to(from_bytes(frames, dtype), self.space, self.space)
        with torch.autocast(device.type, enabled=False):
            latents: Tensor = vae.encode(pixels).latent_dist.mode()
        mean: Tensor = vae.latents_mean.view(1, -1, 1, 1, 1)
        std: Tensor = vae.latents_std.view(1, -1, 1, 1, 1)
        return (latents - mean) * float(vae.config.scaling_factor) / std

    def check(self, spec: VaeProj) -> None:
        """Refuse a spec whose `space` or `time` are not the VAE's.

        Raises:
            UserError: they are not.
        """
        space, time = _ratios(self.folder, self.kind)
        for name, given, actual in (("space", spec.space, space), ("time", spec.time, time)):
            if given != actual:
                raise UserError(
                    f"vae-proj: {name} is {given}, but a cell of {self.folder} has {actual}"
                )


@functools.lru_cache(maxsize=8)
def _ratios(folder: Path, kind: str) -> tuple[int, int]:
    """Return pixels and frames to a cell, as diffusers derives them from the config."""
    cls = _class(kind)
    with torch.device("meta"):
        vae = cls.from_config(cls.load_config(folder))
    return int(vae.spatial_compression_ratio), int(vae.temporal_compression_ratio)


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, kind: str, dtype: torch.dtype, device: str) -> Any:
    """Return the frozen VAE on a device."""
    try:
        vae, info = _class(kind).from_pretrained(
            folder, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(
            f"vae-proj: weights {folder} cannot be read: {first_line(error)}"
        ) from error
    if info["missing_keys"]:
        raise UserError(f"vae-proj: weights {folder} lack {min(info['missing_keys'])}")
    return vae.eval().requires_grad_(False).to(device, dtype)


def _class(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)
