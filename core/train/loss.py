"""Stages of training, each one module: a batch in, a loss out; one root for DDP and FSDP.

The trainer knows `Stage`. `StageOne` is Stage I, retrieval (Eq. 3), `StageTwo` Stage II, going on
(Eq. 4). A stage also says what its loss makes of the memory (method.md §7: a memory may silently do
nothing): the same targets and noise are scored with the true memory, with another sample's tokens
at the same places, and with none.
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
from ..experiment import FinetuneSpec, TrainSpec
from ..interfaces.codec import Codec
from ..interfaces.compressor import MemoryEncoder
from ..interfaces.masker import Masker
from ..interfaces.spec import CodecSpec, MaskerSpec
from ..model import Model
from ..registry import build
from ..tools.device import autocast
from ..values.draws import Draws, drops_memory
from ..values.flow import interpolate, logit_normal, velocity_target
from ..values.grid import Rate
from ..values.history import Continuation, History, Query
from ..values.memory import Memory
from ..values.shapes import Frames, Targets
from ..values.text import Text

T = TypeVar("T")
CORRUPTED, CORRUPTION = 0.9, 1 / 3  # share of pasts that get noise, and its highest level
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

    weights: Tensor  # of each channel's error, `[C]`

    def __init__(self, model: Model, spec: TrainSpec, null_text: Text) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.backbone = model.backbone
        self.spec = spec
        self.null_text = null_text
        self.finite = FiniteLog()
        self.shift = model.experiment.backbone.shift
        device = next(self.backbone.parameters()).device
        weights = channel_weights(model, spec.weigh).to(device)
        self.register_buffer("weights", weights, persistent=False)
        self._no_split_modules = self.backbone._no_split_modules  # read by Accelerate, for FSDP

    @abstractmethod
    def forward(self, batch: Batch, step: int) -> Tensor:
        """Return the mean loss of a batch's samples.

        All that is random follows from the seed, the step and each sample's place in the step's
        batch, so that the mean over processes or micro-batches is the loss of the whole.
        """

    @abstractmethod
    def memory_losses(self, batch: Batch, step: int) -> MemoryLosses:
        """Return the losses of a batch under three memories; it needs two samples or more."""

    def as_forward(self, run: Callable[[], T]) -> T:
        """Return `run()`, worked out as this module's forward is: under its autocast.

        Under FSDP2 parameters are whole in such a call only; all processes must run the same.
        """
        with autocast(self.spec.precision, next(self.backbone.parameters()).device):
            return run()

    def drops_memory(self, step: int) -> bool:
        """Return whether the batch of a step reads no memory; the same in every process."""
        return drops_memory(self.spec.seed, step, self.spec.memory_dropout)

    def velocity_loss(
        self, targets: Targets, frames: Frames, text: Text, memory: Memory, drawn: TimeAndNoise
    ) -> Tensor:
        """Return the flow-matching loss of each sample `[B]` under a memory.

        Args:
            targets: X_0, clean latents `[B, C, K, H, W]`.
            frames: their absolute latent frames, `[B, K]`.
            text: prompts.
            memory: what the backbone reads of the past.
            drawn: t and ε.
        """
        noisy = interpolate(targets, drawn.noise, rearrange(drawn.t, "b -> b 1 1 1 1"))
        context = self.backbone.context(text, memory)
        velocity = self.backbone.velocity(noisy, drawn.t, frames.to(noisy.device), context)
        self.finite.add(self.backbone, velocity)
        target = velocity_target(targets, drawn.noise)
        error = F.mse_loss(velocity.float(), target.float(), reduction="none")
        weighted: Tensor = error * rearrange(self.weights, "c -> 1 c 1 1 1")
        return rearrange(weighted, "b c k h w -> b (c k h w)").mean(1)

    def draw_time(self, targets: Targets, draws: Draws) -> TimeAndNoise:
        """Return t ~ L(0, 1), a share of it at t = 1, and ε; both on the targets' device."""
        spec = self.spec
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

    def drop_text(self, text: Text, draws: Draws) -> Text:
        """Return the prompts, of which a share `text_dropout` is the empty one."""
        keep = draws.uniform() >= self.spec.text_dropout
        return text.where(keep, self.null_text.to(text.embeddings.device))


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

    def __init__(
        self, model: Model, masker: Masker[MaskerSpec], spec: TrainSpec, null_text: Text
    ) -> None:
        super().__init__(model, spec, null_text)
        self.masker = masker

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
            query = self.masker.query(history, self.drop_text(text, draws), draws)
            hidden = query.history
            finite.add(self.masker, query.targets, hidden.latents, *hidden.lr.values())
            drawn = self.draw_noise(query, draws)
            memory = self.encoder(hidden)
            finite.add_memory(self.encoder, memory)
            dropped = self.drops_memory(step)
            loss = self.loss(query, Memory() if dropped else memory, drawn).mean()
            return loss + memory.anchor() if dropped else loss

    def loss(self, query: Query, memory: Memory, drawn: TimeAndNoise) -> Tensor:
        """Return the flow-matching loss of each sample `[B]` under a memory."""
        return self.velocity_loss(query.targets, query.frames, query.text, memory, drawn)

    def draw_noise(self, query: Query, draws: Draws) -> TimeAndNoise:
        """Return t ~ L(0, 1), a share of it at t = 1, and ε; both on the targets' device."""
        return self.draw_time(query.targets, draws)

    @torch.no_grad()
    def memory_losses(self, batch: Batch, step: int) -> MemoryLosses:
        """Return the losses of a batch's queries under the true, another sample's and no memory."""
        draws = Draws.of(self.spec.seed, step, batch.places, "gain")
        query = self.masker.query(batch.history, batch.text, draws)
        drawn = self.draw_noise(query, draws)

        def losses() -> MemoryLosses:
            memory = self.encoder(query.history)
            return MemoryLosses(
                true=self.loss(query, memory, drawn),
                shuffled=self.loss(query, shuffled(memory), drawn),
                none=self.loss(query, Memory(), drawn),
            )

        return self.as_forward(losses)


class StageTwo(Stage):
    """Stage II: go on from a clean and whole past."""

    def __init__(
        self, model: Model, finetune: FinetuneSpec, spec: TrainSpec, null_text: Text
    ) -> None:
        super().__init__(model, spec, null_text)
        self.finetune = finetune

    def forward(self, batch: Batch, step: int) -> Tensor:
        """Return the loss of a batch: E‖(ε − X_0) − G(X_t, t, c, φ(H))‖² (Eq. 4).

        A batch whose past is hidden (`memory_dropout`) or that has none reads no memory: no tokens,
        never zeros. φ runs all the same, where there is no past over the target itself, and its
        tokens enter the loss times 0, so that every parameter has a gradient on every rank.
        """
        with autocast(self.spec.precision, self.weights.device):
            draws = Draws.of(self.spec.seed, step, batch.places, "loss")
            finite = self.finite = FiniteLog()
            window, asked = batch.history, batch.continuation()
            finite.add(DATA, window.latents, *window.lr.values(), batch.text.embeddings)
            text = self.drop_text(asked.prompt, draws)
            drawn = self.draw_time(asked.target, draws)
            past = corrupted(asked.history, self.finetune.corruption, draws)
            memory = self.encoder(past if batch.past else window)
            finite.add_memory(self.encoder, memory)
            dropped = self.drops_memory(step) or not batch.past
            asked = attrs.evolve(asked, prompt=text)
            loss = self.loss(asked, Memory() if dropped else memory, drawn).mean()
            return loss + memory.anchor() if dropped else loss

    def loss(self, asked: Continuation, memory: Memory, drawn: TimeAndNoise) -> Tensor:
        """Return the flow-matching loss of each sample `[B]` under a memory."""
        return self.velocity_loss(asked.target, asked.frames, asked.prompt, memory, drawn)

    @torch.no_grad()
    def memory_losses(self, batch: Batch, step: int) -> MemoryLosses:
        """Return the losses of a batch's targets under the true, another sample's and no memory.

        The past is clean. Of a batch that has none, the first half of the target serves as one.
        """
        draws = Draws.of(self.spec.seed, step, batch.places, "gain")
        past = batch.past or max(1, batch.history.size.time // 2)
        asked = attrs.evolve(batch, past=past).continuation()
        drawn = self.draw_time(asked.target, draws)

        def losses() -> MemoryLosses:
            memory = self.encoder(asked.history)
            return MemoryLosses(
                true=self.loss(asked, memory, drawn),
                shuffled=self.loss(asked, shuffled(memory), drawn),
                none=self.loss(asked, Memory(), drawn),
            )

        return self.as_forward(losses)


def corrupted(history: History, preset: str, draws: Draws) -> History:
    """Return a past with noise in its latents, as generated ones have errors; `none` draws nothing.

    An LR latent has the least level of the HR latents that it covers.

    Args:
        history: of equal lengths, clean.
        preset: `none`; `noise`, one level a sample; `frames`, one for each latent frame.
        draws: one for each sample.
    """
    time = history.size.time
    if preset == "none" or not time:
        return history
    chosen = rearrange(draws.uniform() < CORRUPTED, "b -> b 1")
    levels = CORRUPTION * chosen * (draws.uniform(time) if preset == "frames" else draws.uniform(1))
    levels = levels.expand(-1, time)

    def noisy(x: Tensor, level: Tensor) -> Tensor:
        noise = draws.normal(*x.shape[1:]).to(x.device, x.dtype)
        return interpolate(x, noise, rearrange(level, "b t -> b 1 t 1 1").to(x.device, x.dtype))

    def covering(rate: Rate, count: int) -> Tensor:
        cells = [
            levels[:, max(0, rate.time * (j - 1) + 1) : rate.time * j + 1] for j in range(count)
        ]
        return torch.stack([cell.amin(dim=1) for cell in cells], dim=1)

    return attrs.evolve(
        history,
        latents=noisy(history.latents, levels),
        lr={rate: noisy(x, covering(rate, x.shape[2])) for rate, x in history.lr.items()},
    )


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
