"""One segment out of noise: what it may remember, and the latents that come of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch
from attrs import define, field, frozen
from einops import rearrange
from torch import Tensor

from ..errors import LongtakeError
from ..experiment import TrainSpec
from ..interfaces.backbone import Backbone, Cache
from ..sample.loop import Conditioning, Contexts, draw_noise, steps
from ..sample.spec import Sampler
from ..tools.words import counted
from ..values.flow import interpolate, logit_normal, velocity_target
from ..values.grid import MemoryLimit, Size3
from ..values.memory import Memory, drop_oldest
from ..values.text import Text
from .events import Event, Preview, Step
from .order import Entry
from .past import whole_memory


@frozen(eq=False, kw_only=True)
class Task:
    """A segment that is to be sampled.

    Attributes:
        number: of it; `segments` are those that the take is to have.
        entry: what is asked for.
        first: its first latent in the take.
        size: of a latent frame.
        sampler: with what the entry changes.
        shift: of the sampler.
        text, null_text: of prompt and negative prompt.
        shot: first latent of the shot that it is in, for `memory: since_cut`.
    """

    number: int
    segments: int
    entry: Entry
    first: int
    size: Size3
    sampler: Sampler
    shift: float
    text: Text
    null_text: Text
    shot: int


@define
class Remembering:
    """The memory that segments read, with the keys and values of what has settled.

    With `isolated-causal` attention the cache grows by what is new; with others there is none. What
    the limit drops is held no longer, so that a take costs the same as it grows.

    Attributes:
        backbone: G.
        limit: of the memory; None: there is none.
        appends: whether a cache can be appended to.
        kept: settled memory of the first `taken` segments, within the limit.
        cache: of it.
        taken: segments whose settled memory was taken over.
    """

    backbone: Backbone
    limit: MemoryLimit | None
    appends: bool
    kept: Memory = field(factory=Memory)
    cache: Cache | None = None
    taken: int = 0

    def held(
        self, settled: Sequence[Memory], pending: Memory, task: Task
    ) -> tuple[Memory | Cache, int]:
        """Return what a segment reads of the past, and its tokens.

        Args:
            settled: memory of the segments from number `taken` + 1 on.
            pending: what may still change.
            task: the segment.
        """
        entry = task.entry
        for memory in settled:
            self._take(memory)
        if entry.memory == "none":
            return Memory(), 0
        if self.appends and entry.memory == "all":
            return self._cached(pending)
        memory = self._limited(whole_memory([self.kept], pending))
        if entry.memory == "since_cut":
            memory = since(memory, task.shot)
        return memory, memory.length

    def _limited(self, memory: Memory) -> Memory:
        return memory if self.limit is None else drop_oldest(memory, self.limit)

    def _take(self, settled: Memory) -> None:
        """Take over what has settled with the next segment, and drop what is old."""
        self.taken += 1
        self.kept = self._limited(whole_memory([self.kept, settled], Memory()))
        if not self.appends or not settled.length:
            return
        self.cache = self.backbone.remember(settled, self.cache)
        if self.limit is not None:
            self.cache = self.cache.drop_oldest(self.limit)

    def _cached(self, pending: Memory) -> tuple[Memory | Cache, int]:
        """Return the cache, with what may still change beside it."""
        if self.cache is None and not pending.length:
            return Memory(), 0
        held = self.cache
        if pending.length:
            held = self.backbone.remember(pending, self.cache)
            if self.limit is not None:
                held = held.drop_oldest(self.limit)
        assert held is not None
        return held, held.length


def since(memory: Memory, latent: int) -> Memory:
    """Return the tokens of a memory that cover nothing from before a latent of the take."""
    parts = []
    for part in memory.parts:
        first = part.positions[..., 0] - (part.extents[..., 0] - 1) / 2
        parts.append(part.keep(part.valid.cpu() & (first.cpu() >= latent - 1e-9)))
    return attrs.evolve(memory, parts=tuple(parts))


@define
class Pace:
    """How long things take, for what is still to come.

    Attributes:
        left: passes of the model times latents that are to come behind this segment.
        segments_left: segments behind this one.
        seconds, work: that sampling took so far, and passes times latents of it.
        beside: seconds of each segment beside sampling.
    """

    left: int = 0
    segments_left: int = 0
    seconds: float = 0.0
    work: int = 0
    beside: list[float] = field(factory=list)

    def eta(self, work: int) -> float:
        """Return the seconds that so much work takes."""
        return work * self.seconds / self.work if self.work else 0.0

    def eta_all(self, work: int) -> float:
        """Return the seconds until all is made, `work` of this segment first."""
        beside = sum(self.beside) / len(self.beside) if self.beside else 0.0
        return self.eta(work + self.left) + beside * (self.segments_left + 1)


@torch.no_grad()
def sample_segment(
    backbone: Backbone,
    task: Task,
    memory: Memory | Cache,
    device: torch.device,
    pace: Pace,
    rgb: tuple[Tensor, Tensor] | None,
) -> Iterator[Event | Tensor]:
    """Yield an event a step, and at last the latents, float32 `[1, C, K, H, W]` on the CPU.

    Args:
        backbone: G, on `device`.
        task: the segment.
        memory: that it reads.
        device: where it runs.
        pace: is kept up to date.
        rgb: of the codec, for previews; None: there are none.

    Raises:
        LongtakeError: latents are not numbers, or memory is short; nothing of the segment is kept.
    """
    generator = torch.Generator().manual_seed(task.entry.seed)
    count = task.entry.latents
    size = attrs.evolve(task.size, time=count)
    noise = draw_noise(backbone.geometry.channels, size, generator).to(device)
    frames = torch.arange(task.first, task.first + count, device=device)[None]
    latents, at = noise, 0
    try:
        conditioning = Conditioning(
            text=task.text.to(device, torch.float32),
            null_text=task.null_text.to(device, torch.float32),
            memory=memory,
        )
        contexts = Contexts.of(backbone, task.sampler, conditioning)
        began = time.monotonic()
        for step in steps(
            backbone, task.sampler, noise, frames, contexts, shift=task.shift, generator=generator
        ):
            latents, at = step.latents, step.done
            if not bool(latents.isfinite().all()):
                raise LongtakeError(
                    f"segment {task.number} came out as not a number at step {at} of "
                    f"{step.total} (float16?): not kept"
                )
            now = time.monotonic()
            pace.seconds, began, pace.work = pace.seconds + now - began, now, pace.work + count
            rest = (step.total - step.done) * count
            yield Step(
                segment=task.number,
                segments=task.segments,
                done=step.done,
                total=step.total,
                eta=round(pace.eta(rest), 3),
                eta_all=round(pace.eta_all(rest), 3),
            )
            if rgb is not None:
                yield _preview(task, step, rgb)
            began = time.monotonic()
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        raise LongtakeError(
            f"out of memory at segment {task.number}, step {at + 1} ({_tokens(memory):,} memory "
            "tokens): lower generate.budget.max_history_seconds in a new take, or the size; "
            f"{counted(task.number - 1, 'segment')} safe"
        ) from error
    yield latents.float().cpu()


@torch.no_grad()
def memory_gain(
    backbone: Backbone,
    task: Task,
    memory: Memory | Cache,
    latents: Tensor,
    draws: int,
    train: TrainSpec,
) -> float:
    """Return the loss of a segment's own latents without memory less that with it.

    The loss is that of training (Eq. 4), at the same times and noise for both.

    Args:
        backbone: G, on its device.
        task: the segment.
        memory: that it read.
        latents: that came of it, `[1, C, K, H, W]`.
        draws: of time and noise, 1 or more.
        train: whose times are drawn.
    """
    generator = torch.Generator().manual_seed(task.entry.seed)
    device = next(backbone.parameters()).device
    count = latents.shape[2]
    frames = torch.arange(task.first, task.first + count, device=device)[None]
    clean, text = latents.to(device), task.text.to(device, torch.float32)
    contexts = [backbone.context(text, held) for held in (Memory(), memory)]
    gains = []
    for _ in range(draws):
        normal = torch.randn(1, generator=generator)
        t = logit_normal(normal, mean=train.mean, std=train.std, shift=task.shift).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        noisy, target = interpolate(clean, noise, float(t)), velocity_target(clean, noise)
        without, with_it = (
            float((backbone.velocity(noisy, t, frames, one).float() - target).square().mean())
            for one in contexts
        )
        gains.append(without - with_it)
    return sum(gains) / draws


def _preview(task: Task, step: Any, rgb: tuple[Tensor, Tensor]) -> Preview:
    clean = step.clean
    return Preview(
        segment=task.number,
        done=step.done,
        total=step.total,
        make=lambda: colours(clean, rgb),
    )


def colours(latents: Tensor, rgb: tuple[Tensor, Tensor]) -> Tensor:
    """Return latents `[1, C, K, H, W]` as small pictures, uint8 `[K, 3, H, W]`."""
    weight, offset = (x.detach().cpu().float() for x in rgb)
    cells = rearrange(latents[0].detach().cpu().float(), "c k h w -> k h w c")
    pixels = cells @ weight.T + offset
    return rearrange(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte(), "k h w c -> k c h w")


def _tokens(memory: Memory | Cache) -> int:
    return memory.length


def is_memory_error(error: BaseException) -> bool:
    """Return whether memory, of the GPU or the machine, is what was short."""
    text = str(error)
    words = ("out of memory", "not enough memory", "can't allocate memory", "bad alloc")
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in text.lower() for word in words)
