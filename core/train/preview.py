"""Pictures of what a model gives back while it trains: originals above, retrieved frames below."""

from __future__ import annotations

import logging
from typing import Self

import torch
from attrs import define, frozen
from torch import Tensor

from ..codec import Codec
from ..data.batch import Batch
from ..data.store import Store
from ..errors import UserError
from ..experiment import Experiment
from ..model import Model, build_retriever
from ..registry import build
from ..retriever import LatentFrames, Retrieved
from ..scene import last_frames, learned_retriever, make_scene
from ..spec import CodecSpec
from ..text import Text

FRAMES = 4


@frozen(eq=False, kw_only=True)
class Asked:
    """What was retrieved for a picture: frames Ω `[1, K]` of true `latents` `[1, C, T, H, W]`."""

    latents: Tensor
    omega: Tensor
    found: Retrieved


@define
class Previews:
    """Draws what memory gives back, with one codec for a run.

    Weights of the codec are loaded at the first picture and wait on the CPU for the next. Training
    does not need them, so where they are not on this machine, or cannot be used, there are no
    pictures: that is said once.

    Attributes:
        asks: whether a retriever of the experiment reads memory: the same in all processes.
        lacks: why this process has no pictures; "": it has.
        said: whether that was said.
    """

    codec: Codec[CodecSpec]
    asks: bool = True
    lacks: str = ""
    said: bool = False

    @classmethod
    def of(cls, experiment: Experiment, store: Store) -> Self:
        """Prepare the pictures of a run over a store; nothing is loaded yet."""
        codec: Codec[CodecSpec] = build(experiment.backbone.codec)
        store.teach(codec)
        try:
            learned_retriever(experiment)
        except UserError as error:
            return cls(codec, asks=False, lacks=str(error))
        here = codec.at_hand
        return cls(codec, lacks="" if here else "the codec's weights are not on this machine")

    def ready(self) -> bool:
        """Whether a picture can be drawn; the first time that it cannot, say so."""
        if self.lacks and not self.said:
            self.said = True
            logging.getLogger(__name__).warning("no pictures of retrieved frames: %s", self.lacks)
        return not self.lacks

    @torch.no_grad()
    def ask(self, model: Model, batch: Batch, null_text: Text, *, seed: int) -> Asked:
        """Retrieve four frames of the batch's first sample, spread evenly over its window.

        The memory is that of the clean history.
        """
        history = batch.history.select([0])
        self.codec.to(history.latents.device)
        last = history.size.time - 1
        omega = torch.linspace(0, last, min(FRAMES, last + 1)).round().long().unique()[None]
        scene = make_scene(model, self.codec, batch, null_text)
        generator = torch.Generator().manual_seed(seed)
        found = build_retriever(learned_retriever(model.experiment))(scene, omega, generator)
        return Asked(latents=history.latents, omega=omega, found=found)

    @torch.no_grad()
    def draw(self, asked: Asked) -> Tensor | None:
        """Give the frames below their originals, uint8 `[3, P, Q]`; None where decoding fails.

        A picture is worth no run: what fails here, as for want of memory, ends the pictures alone.
        """
        latents, omega = asked.latents, asked.omega
        truth = LatentFrames(latents=latents[:, :, omega[0].to(latents.device)])
        try:
            rows = [last_frames(self.codec, latents, omega, x) for x in (truth, asked.found)]
        except (UserError, torch.OutOfMemoryError) as error:
            self.lacks = str(error).partition("\n")[0]
            self.ready()
            return None
        finally:
            self.codec.to("cpu")
        return torch.cat(rows, dim=1)
