"""The frozen image encoder of `clip`, through transformers."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attrs import frozen
from safetensors import SafetensorError
from torch import Tensor

from ...core.errors import UserError
from ...core.files import read_object
from ..patchifier_specs import Clip
from .vae_proj_files import config_of, line, model_folder

CLASSES = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}
COLOURS = {  # mean and standard deviation of each colour that the encoders were trained with
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
Colours = tuple[tuple[float, ...], tuple[float, ...]]


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
        config = config_of("clip", folder, "model_type")
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
        """Give embeddings `[n, S, width]` of frames, uint8 `[n, 3, P, Q]`.

        Frames are resized to the encoder's square, sides apart, so that all of a frame is seen.

        Args:
            frames: n of them.
            cells: S = rows × columns means over the encoder's patches; None: the pooled embedding.
            dtype: of the encoder.
        """
        device = frames.device
        model = _loaded(self.folder, self.kind, dtype, str(device))
        with torch.autocast(device.type, enabled=False):
            out = model(pixel_values=self._square(frames, dtype))
        states: Tensor = out.last_hidden_state
        if cells is None:
            pooled: Tensor | None = out.pooler_output
            return (states.mean(dim=1) if pooled is None else pooled)[:, None]
        side = int(states.shape[1] ** 0.5)
        grid = states[:, states.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))
        return F.adaptive_avg_pool2d(grid, cells).flatten(2).transpose(1, 2)

    def _square(self, frames: Tensor, dtype: torch.dtype) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        sides = (self.size, self.size)
        small = F.interpolate(frames.to(wide) / 255, sides, mode="bicubic", antialias=True)
        mean, std = (torch.tensor(x, dtype=wide, device=frames.device) for x in self.colours)
        normal = (small.clamp(0, 1) - mean[:, None, None]) / std[:, None, None]
        return normal.to(dtype)


def _colours(folder: Path, kind: str) -> Colours:
    """Give what the folder's preprocessor says, or what the kind was trained with."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return COLOURS[kind]
    found = read_object(path, "preprocessor", "image_mean", "image_std")
    return tuple(map(float, found["image_mean"])), tuple(map(float, found["image_std"]))


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, kind: str, dtype: torch.dtype, device: str) -> Any:
    """Give the frozen encoder on a device."""
    import transformers

    cls: Any = getattr(transformers, CLASSES[kind])
    try:
        model, info = cls.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"clip: weights {folder} cannot be read: {line(error)}") from error
    if info["missing_keys"]:
        raise UserError(f"clip: weights {folder} lack {min(info['missing_keys'])}")
    return model.eval().requires_grad_(False).to(device, dtype)
