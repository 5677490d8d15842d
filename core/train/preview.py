"""A picture of what a model gives back: originals above, retrieved frames below."""

from __future__ import annotations

import torch
from torch import Tensor

from ..data.batch import Batch
from ..model import Model, build_retriever
from ..registry import build
from ..retriever import LatentFrames
from ..scene import last_frames, learned_retriever, make_scene
from ..text import Text

FRAMES = 4


@torch.no_grad()
def preview(model: Model, batch: Batch, null_text: Text, *, seed: int) -> Tensor:
    """Give four frames of the batch's first sample above what memory gives back, uint8 `[3, P, Q]`.

    The memory is that of the clean history; frames are spread evenly over the window.
    """
    history = batch.history.select([0])
    codec = build(model.experiment.backbone.codec).to(history.latents.device)
    last = history.size.time - 1
    omega = torch.linspace(0, last, min(FRAMES, last + 1)).round().long().unique()[None]
    scene = make_scene(model, codec, batch, null_text)
    generator = torch.Generator().manual_seed(seed)
    result = build_retriever(learned_retriever(model.experiment))(scene, omega, generator)
    shown = last_frames(codec, history.latents, omega, result)
    truth = LatentFrames(latents=history.latents[:, :, omega[0].to(history.latents.device)])
    original = last_frames(codec, history.latents, omega, truth)
    return torch.cat([original, shown], dim=1)
