"""Image embeddings of every k-th frame, projected into the DiT's hidden space."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from einops import rearrange, repeat
from safetensors import SafetensorError
from torch import Tensor

from ...core.errors import UserError
from ...core.interfaces.compressor import Compressor, Fit, Length, Needs, State
from ...core.interfaces.streaming import advance, seen_size
from ...core.tools.files import read_object
from ...core.tools.hub import first_line
from ...core.values.grid import Geometry, Size3, ceil_div
from ...core.values.history import History
from ...core.values.memory import Ends, Memory, Part, box_places
from .frames import checked_pixels
from .frozen import model_folder, number_type, projection, read_config
from .specs import Clip

FRAMES = 32  # embedded at a time
CLASSES = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
COLOURS = {  # mean and standard deviation of each colour that the encoders were trained with
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
Colours = tuple[tuple[float, ...], tuple[float, ...]]


class ClipCompressor(Compressor[Clip]):
    """The last frame of latents 0, k, 2k, … → frozen CLIP or SigLIP → norm → linear → tokens.

    One part, `clip-<k>`: one pooled token a frame at its centre, or grid × grid tokens, each the
    mean over a rectangle of the encoder's patches, placed over the rectangle of the DiT's cells
    that it stands for (frames of fewer cells have fewer). Only the projection trains and is saved;
    it begins with tokens as large as the DiT's own.

    Each frame is embedded by itself, so every token is final at once and the state is two counts.

    Source: method.md §6 (V6: CLIP embeddings).
    """

    def __init__(self, spec: Clip, fit: Fit) -> None:
        super().__init__(spec, fit)
        self.encoder = ImageEncoder.of(spec)
        self.project = projection(self.encoder.width, fit)

    @classmethod
    def needs(cls, spec: Clip) -> Needs:
        """Return pixels; of latents only the shape is read."""
        return Needs(pixels=True, hr=False)

    @classmethod
    def context_length(cls, spec: Clip, geometry: Geometry, size: Size3) -> Length:
        """Return the exact number of tokens: those of a frame for every k-th latent."""
        rows, columns = cells_of(spec, geometry, size)
        return Length(tokens=ceil_div(size.time, spec.every) * rows * columns)

    def forward(self, history: History) -> Memory:
        """Return the memory of a whole window."""
        at = list(range(0, history.size.time, self.spec.every))
        return self._memory(history, at, history.size, history.start, history.length)

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return the tokens of its k-th latents.

        Raises:
            ValueError: the chunk does not follow what the state has seen, or lacks its pixels.
        """
        new = advance(state, chunk)
        size = seen_size(new)
        at = [t for t in range(chunk.offset, size.time) if t % self.spec.every == 0]
        if not at:
            return new, Memory(size=size)
        length = torch.full_like(chunk.length, size.time)
        return new, self._memory(chunk, at, size, new["start"], length)

    def pending(self, state: State) -> Memory:
        """Return nothing: all tokens are final."""
        return Memory(size=seen_size(state))

    def _memory(
        self, history: History, at: list[int], size: Size3, start: Tensor, length: Tensor
    ) -> Memory:
        """Return the tokens of latents `at` of the window."""
        cells = cells_of(self.spec, self.geometry, size)
        tokens = self._tokens(self._frames(history, at), cells)
        patch, latent = self.geometry.patch, torch.tensor(at, dtype=torch.float64)[None]
        rows = _even_runs(ceil_div(size.height, patch.height), cells[0])
        columns = _even_runs(ceil_div(size.width, patch.width), cells[1])
        positions, extents = box_places((latent, latent), rows, columns, start)
        real = torch.tensor(at)[None] < length.cpu()[:, None]
        part = Part(
            name=f"clip-{self.spec.every}",
            tokens=tokens,
            positions=positions,
            extents=extents,
            valid=repeat(real, "b n -> b (n s)", s=cells[0] * cells[1]),
        )
        return Memory(parts=(part,), size=size)

    def _tokens(self, frames: Tensor, cells: tuple[int, int]) -> Tensor:
        """Return tokens `[B, n·S, D]` of frames, uint8 `[B, 3, n, P, Q]`."""
        batch, count, weight = frames.shape[0], frames.shape[2], self.project.weight
        dtype = number_type(self.spec.dtype, weight)
        shape = None if self.spec.grid == 1 else cells
        each = rearrange(frames, "b c n h w -> (b n) c h w")
        parts = [self.encoder.embed(x, shape, dtype) for x in each.split(FRAMES) if len(x)]
        # An empty history runs on one zero embedding, so that the graph still holds all parameters.
        whole = torch.cat(parts) if parts else each.new_zeros(batch, 1, self.encoder.width)
        normal = F.layer_norm(whole.to(weight.dtype), (self.encoder.width,))
        tokens: Tensor = self.project(normal)
        per_frame = cells[0] * cells[1]
        return rearrange(tokens, "(b n) s d -> b (n s) d", b=batch)[:, : count * per_frame]

    def _frames(self, history: History, at: list[int]) -> Tensor:
        """Return the last video frame of latents `at`, uint8 `[B, 3, n, P, Q]`.

        Raises:
            ValueError: the history has no pixels, or not those of its latents.
        """
        pixels = checked_pixels(history, self.geometry.vae_stride, "clip")
        first, stride = history.offset, self.geometry.vae_stride.time
        before = 0 if first == 0 else stride * (first - 1) + 1
        return pixels[:, :, [stride * t - before for t in at]]


def cells_of(spec: Clip, geometry: Geometry, size: Size3) -> tuple[int, int]:
    """Return rows and columns of a frame's tokens: `grid`, or as many patch cells as there are."""
    rows = ceil_div(size.height, geometry.patch.height)
    columns = ceil_div(size.width, geometry.patch.width)
    return min(spec.grid, rows), min(spec.grid, columns)


def _even_runs(cells: int, parts: int) -> Ends:
    """Return first and last cell of `parts` runs of cells, as even as they can be; float64."""
    bounds = torch.arange(parts + 1) * cells // parts
    return bounds[:-1].double(), (bounds[1:] - 1).double()


@frozen(kw_only=True)
class ImageEncoder:
    """An image encoder on disk, loaded when first used; no parameters of the compressor.

    Attributes:
        folder: with config.json and safetensors files.
        kind: `clip` or `siglip`.
        width: of an embedding.
        size: rows and columns of pixels that it sees.
        colours: mean and standard deviation that pixels in [0, 1] are normalised with.
    """

    folder: Path
    kind: str
    width: int
    size: int
    colours: Colours

    @classmethod
    def of(cls, spec: Clip) -> ImageEncoder:
        """Find the encoder that a spec names, reading its config only.

        Raises:
            UserError: there is none, or it is of another kind.
        """
        folder = model_folder("clip", spec.weights, spec.subfolder, "openai/clip-vit-large-patch14")
        config = read_config("clip", folder, "model_type")
        kind = str(config["model_type"]).removesuffix("_vision_model")
        if kind not in CLASSES:
            raise UserError(f"clip reads CLIP and SigLIP, but {folder} is of {kind}")
        vision = config.get("vision_config", config)
        for key in ("hidden_size", "image_size"):
            if key not in vision:
                raise UserError(f"clip: {folder / 'config.json'} lacks {key}")
        return cls(
            folder=folder,
            kind=kind,
            width=int(vision["hidden_size"]),
            size=int(vision["image_size"]),
            colours=_colours(folder, kind),
        )

    @torch.no_grad()
    def embed(self, frames: Tensor, cells: tuple[int, int] | None, dtype: torch.dtype) -> Tensor:
        """Return embeddings `[n, S, width]` of frames, uint8 `[n, 3, P, Q]`.

        Frames are resized to the encoder's square, sides apart, so that all of a frame is seen.

        Args:
            frames: n of them.
            cells: S = rows × columns means over the encoder's patches; None: the pooled embedding.
            dtype: of the encoder.
        """
        device = frames.device
        model = _loaded(self.folder, self.kind, dtype, str(device))
        with torch.autocast(device.type, enabled=False):
            out = model(pixel_values=self._pixel_values(frames, dtype))
        states: Tensor = out.last_hidden_state
        if cells is None:
            pooled: Tensor | None = out.pooler_output
            return (states.mean(dim=1) if pooled is None else pooled)[:, None]
        side = int(states.shape[1] ** 0.5)
        patches = states[:, states.shape[1] - side**2 :]  # a class token may stand first
        grid = rearrange(patches, "n (h w) d -> n d h w", h=side)
        return rearrange(F.adaptive_avg_pool2d(grid, cells), "n d h w -> n (h w) d")

    def _pixel_values(self, frames: Tensor, dtype: torch.dtype) -> Tensor:
        """Return frames resized to the encoder's square and normalised (in float32 or wider)."""
        wide = torch.promote_types(dtype, torch.float32)
        sides = (self.size, self.size)
        small = F.interpolate(frames.to(wide) / 255, sides, mode="bicubic", antialias=True)
        mean, std = (torch.tensor(x, dtype=wide, device=frames.device) for x in self.colours)
        normal = (small.clamp(0, 1) - mean[:, None, None]) / std[:, None, None]
        return normal.to(dtype)


def _colours(folder: Path, kind: str) -> Colours:
    """Return what the folder's preprocessor says, or what the kind was trained with."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return COLOURS[kind]
    config = read_object(path, "preprocessor", "image_mean", "image_std")
    return tuple(map(float, config["image_mean"])), tuple(map(float, config["image_std"]))


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, kind: str, dtype: torch.dtype, device: str) -> Any:
    """Return the frozen encoder on a device."""
    import transformers

    cls: Any = getattr(transformers, CLASSES[kind])
    try:
        model, info = cls.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"clip: weights {folder} cannot be read: {first_line(error)}") from error
    if info["missing_keys"]:
        raise UserError(f"clip: weights {folder} lack {min(info['missing_keys'])}")
    return model.eval().requires_grad_(False).to(device, dtype)
