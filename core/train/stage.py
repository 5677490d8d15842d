"""Stage I as one module: batch in, loss out (Eq. 3); one root for DDP and FSDP (design §3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from ..codec import Codec
from ..data.batch import Batch
from ..device import autocast
from ..draws import Draws, step_generator
from ..experiment import TrainSpec
from ..flow import interpolate, logit_normal, velocity_target
from ..masker import Masker
from ..memory import Memory
from ..model import Model
from ..query import Query
from ..registry import build
from ..spec import CodecSpec, MaskerSpec
from ..text import Text

T = TypeVar("T")


@frozen(eq=False, kw_only=True)
class Draw:
    """The noise of a flow-matching loss: t `[B]` and ε like the targets."""

    t: Tensor
    noise: Tensor


def channel_weights(model: Model, exponent: float) -> Tensor:
    """Give the weight of each channel's error, `[C]`, mean 1: (reach into pixels)^exponent."""
    channels = model.backbone.geometry.channels
    if exponent == 0:
        return torch.ones(channels)
    codec: Codec[CodecSpec] = build(model.experiment.backbone.codec)
    weights = codec.channel_reach**exponent
    return weights / weights.mean()


class StageOne(nn.Module):
    """φ and G under the loss of retrieval."""

    def __init__(
        self, model: Model, masker: Masker[MaskerSpec], spec: TrainSpec, null_text: Text
    ) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.backbone = model.backbone
        self.masker = masker
        self.spec = spec
        self.shift = model.experiment.backbone.shift
        self.null_text = null_text
        self.register_buffer("weights", channel_weights(model, spec.weigh), persistent=False)
        self._no_split_modules = self.backbone._no_split_modules  # read by Accelerate, for FSDP

    weights: Tensor

    def forward(self, batch: Batch, step: int) -> Tensor:
        """Give the loss of a batch: E‖(ε − H_Ω) − G((H_Ω)_t, t, c, φ(mask(H, Ω)))‖² (Eq. 3).

        All that is random follows from the seed, the step and each sample's place in the step's
        batch, so that the mean over processes or micro-batches is the loss of the whole. With
        chance `memory_dropout` the step reads no memory; φ runs all the same and its tokens enter
        the loss times 0, so that every parameter has a gradient on every rank.
        """
        with autocast(self.spec.precision, self.weights.device):
            return self._forward(batch, step)

    def within(self, run: Callable[[], T]) -> T:
        """Give what `run` gives, worked out inside this module's call.

        Under FSDP2 parameters are whole there only; all processes must run the same.
        """
        with autocast(self.spec.precision, self.weights.device):
            return run()

    def _forward(self, batch: Batch, step: int) -> Tensor:
        draws = Draws.of(self.spec.seed, step, batch.places, "loss")
        query = self.masker(batch.history, self._drop_text(batch.text, draws), draws)
        draw = self.draw(query, draws)
        memory = self.encoder(query.history)
        dropped = self.drops_memory(step)
        loss = self.loss(query, Memory() if dropped else memory, draw).mean()
        return loss + memory.anchor() if dropped else loss

    def drops_memory(self, step: int) -> bool:
        """Say whether the batch of a step reads no memory: drawn from the step, on all ranks."""
        generator = step_generator(self.spec.seed, step, 0, "dropout")
        return bool(torch.rand((), generator=generator) < self.spec.memory_dropout)

    def loss(self, query: Query, memory: Memory, draw: Draw) -> Tensor:
        """Give the flow-matching loss of each sample `[B]` under a memory."""
        noisy = interpolate(query.targets, draw.noise, draw.t.view(-1, 1, 1, 1, 1))
        context = self.backbone.context(query.text, memory)
        velocity = self.backbone.velocity(noisy, draw.t, query.frames.to(noisy.device), context)
        target = velocity_target(query.targets, draw.noise)
        error: Tensor = F.mse_loss(velocity.float(), target.float(), reduction="none")
        return (error * self.weights.view(1, -1, 1, 1, 1)).flatten(1).mean(1)

    def draw(self, query: Query, draws: Draws) -> Draw:
        """Give t ~ L(0, 1), a share of it at t = 1, and ε; both on the targets' device."""
        spec, targets = self.spec, query.targets
        normal = draws.normal()
        t = torch.stack(
            [logit_normal(n, mean=spec.mean, std=spec.std, shift=self.shift) for n in normal]
        )
        pure = draws.uniform() < spec.pure
        noise = draws.normal(*targets.shape[1:])
        return Draw(
            t=torch.where(pure, 1.0, t).to(targets.device),
            noise=noise.to(targets.device, targets.dtype),
        )

    def _drop_text(self, text: Text, draws: Draws) -> Text:
        keep = draws.uniform() >= self.spec.text_dropout
        return text.where(keep, self.null_text.to(text.embeddings.device))
