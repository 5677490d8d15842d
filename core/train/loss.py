"""Stage I as one module: batch in, loss out (Eq. 3); one root for DDP and FSDP (design §3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from ..data.windows import Batch
from ..experiment import TrainSpec
from ..interfaces.codec import Codec
from ..interfaces.masker import Masker
from ..interfaces.spec import CodecSpec, MaskerSpec
from ..model import Model
from ..registry import build
from ..tools.device import autocast
from ..values.draws import Draws, step_generator
from ..values.flow import interpolate, logit_normal, velocity_target
from ..values.history import Query
from ..values.memory import Memory
from ..values.text import Text

T = TypeVar("T")


@frozen(eq=False, kw_only=True)
class Draw:
    """The noise of a flow-matching loss: t `[B]` and ε like the targets."""

    t: Tensor
    noise: Tensor


def channel_weights(model: Model, exponent: float) -> Tensor:
    """Return the weight of each channel's error, `[C]`, mean 1: (reach into pixels)^exponent."""
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
        """Return the loss of a batch: E‖(ε − H_Ω) − G((H_Ω)_t, t, c, φ(mask(H, Ω)))‖² (Eq. 3).

        All that is random follows from the seed, the step and each sample's place in the step's
        batch, so that the mean over processes or micro-batches is the loss of the whole. With
        chance `memory_dropout` the step reads no memory; φ runs all the same and its tokens enter
        the loss times 0, so that every parameter has a gradient on every rank.
        """
        with autocast(self.spec.precision, self.weights.device):
            return self._forward(batch, step)

    def within(self, run: Callable[[], T]) -> T:
        """Return what `run` gives, worked out inside this module's call.

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
        """Return the flow-matching loss of each sample `[B]` under a memory."""
        noisy = interpolate(query.targets, draw.noise, draw.t.view(-1, 1, 1, 1, 1))
        context = self.backbone.context(query.text, memory)
        velocity = self.backbone.velocity(noisy, draw.t, query.frames.to(noisy.device), context)
        target = velocity_target(query.targets, draw.noise)
        error: Tensor = F.mse_loss(velocity.float(), target.float(), reduction="none")
        return (error * self.weights.view(1, -1, 1, 1, 1)).flatten(1).mean(1)

    def draw(self, query: Query, draws: Draws) -> Draw:
        """Return t ~ L(0, 1), a share of it at t = 1, and ε; both on the targets' device."""
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


# ⟦core/train/gain.py⟧ memory_gain: what the loss says of the memory (method.md §7: memory that silently does nothing). The same queries and noise are scored with the true memory, with another sample's tokens at the same places, and with none. gain = loss without − loss with.


@frozen(eq=False, kw_only=True)
class Gain:
    """Losses `[B]` of one draw with the true, a shuffled and no memory."""

    true: Tensor
    shuffled: Tensor
    none: Tensor

    @property
    def gain(self) -> Tensor:
        """Loss without memory minus loss with it, `[B]`; above 0 the memory helps."""
        return self.none - self.true

    @property
    def specific(self) -> Tensor:
        """Loss with another sample's memory minus loss with the true one, `[B]`."""
        return self.shuffled - self.true


@torch.no_grad()
def memory_gain(stage: StageOne, query: Query, draw: Draw) -> Gain:
    """Return the losses of one draw with the three memories; needs two samples or more."""
    memory = stage.encoder(query.history)
    return Gain(
        true=stage.loss(query, memory, draw),
        shuffled=stage.loss(query, shuffled(memory), draw),
        none=stage.loss(query, Memory(), draw),
    )


def shuffled(memory: Memory) -> Memory:
    """Return each sample the tokens of the next one, at its own positions."""
    return attrs.evolve(
        memory,
        parts=tuple(
            attrs.evolve(
                part,
                tokens=part.tokens.roll(1, dims=0),
                features={name: x.roll(1, dims=0) for name, x in part.features.items()},
            )
            for part in memory.parts
        ),
    )
