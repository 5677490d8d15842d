"""An external high-compression VAE on pixels, projected into the DiT's hidden space."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from safetensors import SafetensorError
from torch import Tensor

from ...core.errors import UserError
from ...core.interfaces.codec import from_bytes
from ...core.interfaces.compressor import Compressor, Fit, Length, Needs, State, pad_to
from ...core.interfaces.streaming import joined, own
from ...core.values.grid import STEPS, Geometry, Rate, Size3, ceil_div
from ...core.values.history import History
from ...core.values.memory import Memory, grid_part
from ...core.values.shapes import Bytes
from .frozen import config_of, line, model_folder, number_type, projection
from .specs import VaeProj

# ⟦plugins/compressors/vae_proj_blocks.py⟧ How `vae-proj` cuts a video into blocks, and which rate the VAE's cells make.


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
class Blocks:
    """The absolute grid of blocks: block b holds latents n·b + 1 … n·(b + 1), the first also 0.

    Attributes:
        tokens: memory frames of a block.
        latents: n, latents of a block.
        frames: video frames of a block.
        cell: video frames of a memory frame.
        rows, columns: pixels of a latent cell.
    """

    tokens: int
    latents: int
    frames: int
    cell: int
    rows: int
    columns: int

    @classmethod
    def of(cls, spec: VaeProj, geometry: Geometry) -> Blocks:
        """Return the grid of a spec on a backbone."""
        stride = geometry.vae_stride
        return cls(
            tokens=spec.block,
            latents=spec.block * spec.time // stride.time,
            frames=spec.block * spec.time,
            cell=spec.time,
            rows=stride.height,
            columns=stride.width,
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
        stride = self.frames // self.latents
        real = 1 + stride * (latents - 1) if latents else 0
        for first in range(0, max(real - 1, min(real, 1)), self.frames):
            block = frames[:, :, first : min(first + self.frames + 1, real)]
            yield _filled(block, 1 + ceil_div(block.shape[2] - 1, self.cell) * self.cell)

    def checked(self, history: History) -> Bytes:
        """Return the pixels of a window or chunk.

        Raises:
            ValueError: it has none, or not those of its latents.
        """
        pixels, size = history.pixels, history.size
        if pixels is None:
            raise ValueError("vae-proj needs the pixels; the history has none")
        stride = self.frames // self.latents
        due = stride * size.time - (stride - 1 if history.offset == 0 else 0)
        rows, columns = size.height * self.rows, size.width * self.columns
        if size.time and (
            pixels.shape[2] != due or pixels.shape[3] > rows or pixels.shape[4] > columns
        ):
            found = "×".join(map(str, pixels.shape[2:]))
            raise ValueError(f"latents {size} come with {due}×{rows}×{columns} pixels, not {found}")
        return _whole_cells(pixels, rows, columns)


def _filled(frames: Tensor, total: int) -> Tensor:
    """Return `total` frames, the last one repeated."""
    missing = total - frames.shape[2]
    if not missing:
        return frames
    return torch.cat([frames, frames[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)


def _whole_cells(pixels: Bytes, rows: int, columns: int) -> Bytes:
    """Return frames of `rows` × `columns`, the last row and column repeated where some lack."""
    down = [min(i, pixels.shape[3] - 1) for i in range(rows)]
    across = [min(i, pixels.shape[4] - 1) for i in range(columns)]
    if len(down) == pixels.shape[3] and len(across) == pixels.shape[4]:
        return pixels
    return pixels[..., down, :][..., across]


# ⟦plugins/compressors/vae_proj_model.py⟧ The frozen video VAE of `vae-proj`, through diffusers.


CLASSES = ("AutoencoderKLLTXVideo", "AutoencoderKLLTX2Video")


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
        config = config_of("vae-proj", folder, "_class_name", "latent_channels")
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
        """Refuse a spec whose `space` or `time` are not the VAE's: UserError."""
        space, time = _ratios(self.folder, self.kind)
        for name, told, found in (("space", spec.space, space), ("time", spec.time, time)):
            if told != found:
                raise UserError(
                    f"vae-proj: {name} is {told}, but a cell of {self.folder} has {found}"
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
        raise UserError(f"vae-proj: weights {folder} cannot be read: {line(error)}") from error
    if info["missing_keys"]:
        raise UserError(f"vae-proj: weights {folder} lack {min(info['missing_keys'])}")
    return vae.eval().requires_grad_(False).to(device, dtype)


def _class(kind: str) -> Any:
    import diffusers

    return getattr(diffusers, kind)


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
        """Return the memory of a whole window; each sample's last block ends with its own frames."""
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
        """Return the provisional tokens of the block that is not complete."""
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
    """Return tokens of single samples as a batch, zeros behind the shorter."""
    padded = [
        torch.cat([x, x.new_zeros(1, frames - x.shape[1], *x.shape[2:])], dim=1) for x in tokens
    ]
    return torch.cat(padded)
