"""Stage I as one module: batch in, loss out (Eq. 3); one root for DDP and FSDP (design §3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from ..codec import Codec
from ..data.batch import Batch
from ..data.windows import step_generator
from ..experiment import TrainSpec
from ..flow import interpolate, logit_normal, velocity_target
from ..masker import Masker
from ..memory import Memory
from ..model import Model
from ..query import Query
from ..registry import build
from ..spec import CodecSpec, MaskerSpec
from ..text import Text


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

    weights: Tensor

    def forward(self, batch: Batch, step: int, rank: int) -> Tensor:
        """Give the loss of a batch: E‖(ε − H_Ω) − G((H_Ω)_t, t, c, φ(mask(H, Ω)))‖² (Eq. 3).

        All that is random follows from the seed, the step and the rank. With chance
        `memory_dropout` the batch reads no memory; φ runs all the same and its tokens enter the
        loss times 0, so that every parameter has a gradient on every rank.
        """
        generator = step_generator(self.spec.seed, step, rank, "loss")
        query = self.masker(batch.history, self._drop_text(batch.text, generator), generator)
        draw = self.draw(query, generator)
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

    def draw(self, query: Query, generator: torch.Generator) -> Draw:
        """Give t ~ L(0, 1), a share of it at t = 1, and ε; both on the targets' device."""
        spec, targets = self.spec, query.targets
        count = targets.shape[0]
        t = logit_normal(
            (count,), mean=spec.mean, std=spec.std, shift=self.shift, generator=generator
        )
        pure = torch.rand(count, generator=generator) < spec.pure
        noise = torch.randn(targets.shape, generator=generator)
        return Draw(
            t=torch.where(pure, 1.0, t).to(targets.device),
            noise=noise.to(targets.device, targets.dtype),
        )

    def _drop_text(self, text: Text, generator: torch.Generator) -> Text:
        count = text.mask.shape[0]
        keep = torch.rand(count, generator=generator) >= self.spec.text_dropout
        return text.where(keep, self.null_text.to(text.embeddings.device))
