"""The captions that frames of a video file are retrieved with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from attrs import frozen

from ..codec import frame_to_latent, frames_of
from ..data.sources import caption_of
from ..experiment import Experiment
from ..registry import build
from ..text import Text, embed_all


@frozen(eq=False, kw_only=True)
class Captions:
    """The prompts that the asked frames are retrieved with, embedded.

    Attributes:
        latents: the asked latents in order, by their prompt.
        texts: by prompt, "" among them.
    """

    latents: Mapping[str, list[int]]
    texts: Mapping[str, Text]

    @classmethod
    def of(
        cls, experiment: Experiment, video: Path, frames: Sequence[int], device: torch.device
    ) -> Captions:
        """Embed the captions that cover the latents of these frames; then free the encoder.

        Raises:
            UserError: the captions cannot be read, or the text encoder has no weights.
        """
        geometry, stride = (
            experiment.backbone.geometry,
            experiment.backbone.geometry.vae_stride.time,
        )
        latents: dict[str, list[int]] = {}
        for latent in sorted({frame_to_latent(frame, stride) for frame in frames}):
            span = frames_of(latent, stride)
            prompt = caption_of(video, span.start / geometry.fps, span.stop / geometry.fps)
            latents.setdefault(prompt, []).append(latent)
        prompts = sorted({"", *latents})
        text = embed_all(build(experiment.backbone.text_encoder).to(device), prompts)
        texts = {
            prompt: text.select([row]).to(device, torch.float32)
            for row, prompt in enumerate(prompts)
        }
        return cls(latents=latents, texts=texts)
