"""Scenes to retrieve from, and retrieved latents as pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from .codec import Codec, decode_among, frames_of, to_bytes
from .data.batch import Batch
from .errors import UserError
from .experiment import Experiment
from .model import Model
from .registry import registry
from .retriever import LatentFrames, Retrieved, Scene
from .spec import CodecSpec, RetrieverSpec
from .text import Text


def learned_retriever(experiment: Experiment) -> RetrieverSpec:
    """Give the first retriever of the experiment that reads memory.

    Raises:
        UserError: all of them are floors.
    """
    for spec in experiment.retrievers:
        if registry().load(spec).learned:
            return spec
    raise UserError(f"{experiment.name}: none of its retrievers reads memory; add one, as flow")


def make_scene(
    model: Model, codec: Codec[CodecSpec], batch: Batch, null_text: Text, index: int = 0
) -> Scene:
    """Give the scene of one sample, with the memory of its clean history."""
    history = batch.history.select([index])
    return Scene(
        memory=model.encoder(history),
        history=history,
        size=history.size,
        text=batch.text.select([index]),
        null_text=null_text.to(history.latents.device),
        backbone=model.backbone,
        codec=codec,
        shift=model.experiment.backbone.shift,
    )


def last_frames(
    codec: Codec[CodecSpec], latents: Tensor, omega: Tensor, result: Retrieved
) -> Tensor:
    """Give the last video frame of each latent of Ω side by side, uint8 `[3, P, K·Q]`."""
    pixels = frames_by_latent(codec, latents, omega, result)
    return torch.cat([to_bytes(frames[0, :, -1]).cpu() for frames in pixels], dim=-1)


def frames_by_latent(
    codec: Codec[CodecSpec], latents: Tensor, omega: Tensor, result: Retrieved
) -> list[Tensor]:
    """Give the pixels `[1, 3, f, P, Q]` in [−1, 1] of every latent of Ω, in order.

    Latents are decoded among their true predecessors; pixels are only split.
    """
    indices = [int(i) for i in omega[0]]
    if isinstance(result, LatentFrames):
        each = result.latents.to(latents.dtype).split(1, dim=2)
        return [decode_among(codec, latents, i, x) for i, x in zip(indices, each, strict=True)]
    counts = [len(frames_of(i, codec.stride.time)) for i in indices]
    return list(result.pixels.clamp(-1, 1).split(counts, dim=2))
