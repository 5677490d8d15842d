"""Stages of training, each one module: a batch in, a loss out; one root for DDP and FSDP.

The trainer knows `Stage`. `StageOne` is Stage I, retrieval (Eq. 3). A stage also says what its loss
makes of the memory (method.md §7: a memory may silently do nothing): the same queries and noise are
scored with the true memory, with another sample's tokens at the same places, and with none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

import attrs
import torch
import torch.nn.functional as F
from attrs import frozen
from einops import rearrange
from torch import Tensor, nn

from ..data.windows import Batch
from ..experiment import TrainSpec
from ..interfaces.codec import Codec
from ..interfaces.compressor import MemoryEncoder
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
DATA = "the data"  # of the clips, as a maker of numbers


class FiniteLog:
    """Whether what each maker made of a batch is finite, in the order in which it was made.

    The answers stay on the device until somebody asks, so that no step waits for them.
    """

    def __init__(self) -> None:
        self._answers: list[tuple[object, Tensor]] = []

    def add(self, maker: object, *tensors: Tensor, valid: Tensor | None = None) -> None:
        """Look at what a maker made: a plugin, or a text that names what else it is.

        Args:
            maker: of the tensors.
            tensors: any; all of them, or `[B, N, ...]` with `valid`.
            valid: `[B, N]`, False on padding, which may hold anything.
        """
        for x in tensors:
            finite = torch.isfinite(x.detach())
            if valid is not None:
                finite |= ~valid.to(finite.device)[..., None]
            self._answers.append((maker, finite.all()))

    def add_memory(self, encoder: MemoryEncoder, memory: Memory) -> None:
        """Look at the parts of a memory, each made by its compressor."""
        for part in memory.parts:
            made = (part.tokens, part.positions, *part.features.values())
            self.add(encoder.maker(part.name), *made, valid=part.valid)

    def first_bad(self) -> object:
        """Return who first made something that is not finite; None: nobody."""
        return next((maker for maker, finite in self._answers if not bool(finite)), None)


class Stage(nn.Module, ABC):
    """φ and G under the loss of a stage: all that the trainer knows of what it trains.

    Attributes:
        encoder: φ.
        backbone: G.
        spec: how they train.
        null_text: the empty prompt, which stands for dropped captions.
        finite: what of the last batch was finite, and who made it.
    """

    def __init__(self, model: Model, spec: TrainSpec, null_text: Text) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.backbone = model.backbone
        self.spec = spec
        self.null_text = null_text
        self.finite = FiniteLog()
        self._no_split_modules = self.backbone._no_split_modules  # read by Accelerate, for FSDP

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> Tensor:
        """Return the mean loss of a batch's samples.

        All that is random follows from the seed, the step and each sample's place in the step's
        batch, so that the mean over processes or micro-batches is the loss of the whole.
        """

    @abstractmethod
    def drops_memory(self, step: int) -> bool:
        """Return whether the batch of a step reads no memory; the same in every process."""

    @abstractmethod
    def memory_losses(self, batch: Batch, step: int) -> MemoryLosses:
        """Return the losses of a batch under three memories; it needs two samples or more."""

    def as_forward(self, run: Callable[[], T]) -> T:
        """Return `run()`, worked out as this module's forward is: under its autocast.

        Under FSDP2 parameters are whole in such a call only; all processes must run the same.
        """
        with autocast(self.spec.precision, next(self.backbone.parameters()).device):
            return run()


@frozen(eq=False, kw_only=True)
class MemoryLosses:
    """Losses `[B]` of the same queries and noise with the true, a shuffled and no memory."""

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


@frozen(eq=False, kw_only=True)
class TimeAndNoise:
    """What a flow-matching loss draws: times t `[B]`, and noise ε shaped like the targets."""

    t: Tensor
    noise: Tensor


class StageOne(Stage):
    """Stage I: give back masked frames from memory."""

    weights: Tensor  # of each channel's error, `[C]`

    def __init__(
        self, model: Model, masker: Masker[MaskerSpec], spec: TrainSpec, null_text: Text
    ) -> None:
        super().__init__(model, spec, null_text)
        self.masker = masker
        self.shift = model.experiment.backbone.shift
        device = next(self.backbone.parameters()).device
        weights = channel_weights(model, spec.weigh).to(device)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, batch: Batch, step: int) -> Tensor:
        """Return the loss of a batch: E‖(ε − H_Ω) − G((H_Ω)_t, t, c, φ(mask(H, Ω)))‖² (Eq. 3).

        With chance `memory_dropout` the step reads no memory; φ runs all the same and its tokens
        enter the loss times 0, so that every parameter has a gradient on every rank.
        """
        with autocast(self.spec.precision, self.weights.device):
            draws = Draws.of(self.spec.seed, step, batch.places, "loss")
            finite = self.finite = FiniteLog()
            history, text = batch.history, batch.text
            finite.add(DATA, history.latents, *history.lr.values(), text.embeddings)
            query = self.masker(history, self._drop_text(text, draws), draws)
            hidden = query.history
            finite.add(self.masker, query.targets, hidden.latents, *hidden.lr.values())
            drawn = self.draw_noise(query, draws)
            memory = self.encoder(hidden)
            finite.add_memory(self.encoder, memory)
            dropped = self.drops_memory(step)
            loss = self.loss(query, Memory() if dropped else memory, drawn).mean()
            return loss + memory.anchor() if dropped else loss

    def drops_memory(self, step: int) -> bool:
        """Return whether the batch of a step reads no memory: drawn from the step, on all ranks."""
        generator = step_generator(self.spec.seed, step, 0, "dropout")
        return bool(torch.rand((), generator=generator) < self.spec.memory_dropout)

    def loss(self, query: Query, memory: Memory, drawn: TimeAndNoise) -> Tensor:
        """Return the flow-matching loss of each sample `[B]` under a memory."""
        noisy = interpolate(query.targets, drawn.noise, rearrange(drawn.t, "b -> b 1 1 1 1"))
        context = self.backbone.context(query.text, memory)
        velocity = self.backbone.velocity(noisy, drawn.t, query.frames.to(noisy.device), context)
        self.finite.add(self.backbone, velocity)
        target = velocity_target(query.targets, drawn.noise)
        error = F.mse_loss(velocity.float(), target.float(), reduction="none")
        weighted: Tensor = error * rearrange(self.weights, "c -> 1 c 1 1 1")
        return rearrange(weighted, "b c k h w -> b (c k h w)").mean(1)

    def draw_noise(self, query: Query, draws: Draws) -> TimeAndNoise:
        """Return t ~ L(0, 1), a share of it at t = 1, and ε; both on the targets' device."""
        spec, targets = self.spec, query.targets
        normal = draws.normal()
        t = torch.stack(
            [logit_normal(n, mean=spec.mean, std=spec.std, shift=self.shift) for n in normal]
        )
        pure = draws.uniform() < spec.pure
        noise = draws.normal(*targets.shape[1:])
        return TimeAndNoise(
            t=torch.where(pure, 1.0, t).to(targets.device),
            noise=noise.to(targets.device, targets.dtype),
        )

    @torch.no_grad()
    def memory_losses(self, batch: Batch, step: int) -> MemoryLosses:
        """Return the losses of a batch's queries under the true, another sample's and no memory."""
        draws = Draws.of(self.spec.seed, step, batch.places, "gain")
        query = self.masker(batch.history, batch.text, draws)
        drawn = self.draw_noise(query, draws)

        def losses() -> MemoryLosses:
            memory = self.encoder(query.history)
            return MemoryLosses(
                true=self.loss(query, memory, drawn),
                shuffled=self.loss(query, shuffled(memory), drawn),
                none=self.loss(query, Memory(), drawn),
            )

        return self.as_forward(losses)

    def _drop_text(self, text: Text, draws: Draws) -> Text:
        keep = draws.uniform() >= self.spec.text_dropout
        return text.where(keep, self.null_text.to(text.embeddings.device))


def channel_weights(model: Model, exponent: float) -> Tensor:
    """Return the weight of each channel's error, `[C]`, mean 1: (reach into pixels)^exponent."""
    channels = model.backbone.geometry.channels
    if exponent == 0:
        return torch.ones(channels)
    codec: Codec[CodecSpec] = build(model.experiment.backbone.codec)
    weights = codec.channel_reach**exponent
    return weights / weights.mean()


def shuffled(memory: Memory) -> Memory:
    """Return the memory in which each sample has the tokens of the next one, at its own places.

    What one of the two has not (a window that ends at a cut) is left out.
    """
    return attrs.evolve(
        memory,
        parts=tuple(
            attrs.evolve(
                part,
                tokens=part.tokens.roll(1, dims=0),
                valid=part.valid & part.valid.roll(1, dims=0),
                features={name: x.roll(1, dims=0) for name, x in part.features.items()},
            )
            for part in memory.parts
        ),
    )
