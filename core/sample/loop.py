"""From noise to latents: the loop, what guidance and memory make of a step, and the schedulers.

`sample` is all of it, `steps` the same a step at a time. Schedulers are diffusers' flow schedulers
behind one face: times between 0 and 1, and a step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import diffusers
import torch
from attrs import frozen
from torch import Tensor

from ..interfaces.backbone import Backbone, Cache, Context
from ..tools.progress import Report
from ..values.flow import clean_from
from ..values.grid import Size3
from ..values.memory import Memory
from ..values.shapes import Frames, Targets
from ..values.text import Text
from .spec import SCHEDULERS, Sampler

TIMESTEPS = 1000.0  # diffusers' models and schedulers count time in thousandths


@frozen(eq=False, kw_only=True)
class Conditioning:
    """What latents are sampled from beside noise: prompts and memory.

    Attributes:
        text: prompts, one a sample.
        null_text: the negative prompt ("" where none is asked for), one or one a sample.
        memory: of the past, as tokens or, with `isolated` attention, as a cache.
    """

    text: Text
    null_text: Text
    memory: Memory | Cache = Memory()


def sample(
    backbone: Backbone,
    sampler: Sampler,
    noise: Targets,
    frames: Frames,
    conditioning: Conditioning,
    *,
    shift: float,
    generator: torch.Generator | None = None,
    progress: Report | None = None,
) -> Targets:
    """Return the latents `[B, C, K, H, W]` that noise becomes, in all of `steps`.

    `progress` is called with done, total and a note after every pass of the model.
    """
    with torch.no_grad():
        contexts = Contexts.of(backbone, sampler, conditioning)
    x = noise
    for step in steps(backbone, sampler, noise, frames, contexts, shift=shift, generator=generator):
        x = step.latents
        if progress:
            progress(step.done, step.total, "")
    return x


@frozen(eq=False, kw_only=True)
class SamplingStep:
    """What a step of sampling made.

    Attributes:
        done, total: how many passes of the model are made, and how many there are.
        t: the time that it began at.
        latents: after it, `[B, C, K, H, W]`.
        clean: what the model takes for the clean latents, X_t − t·v: a preview.
    """

    done: int
    total: int
    t: float
    latents: Targets
    clean: Targets


@torch.no_grad()
def steps(
    backbone: Backbone,
    sampler: Sampler,
    noise: Targets,
    frames: Frames,
    contexts: Contexts,
    *,
    shift: float,
    generator: torch.Generator | None = None,
) -> Iterator[SamplingStep]:
    """Yield the latents after every step of denoising; whoever stops asking stops sampling.

    Args:
        backbone: G.
        sampler: how.
        noise: X_1, `[B, C, K, H, W]`, on the backbone's device; its dtype is that of the latents.
        frames: absolute latent frames, int64 `[B, K]`.
        contexts: of prompt, negative prompt and memory.
        shift: the backbone's timestep shift.
        generator: of the noise that `lcm` and `sa` draw; None: a fixed one.
    """
    schedule = Schedule.of(sampler, shift, noise.device)
    draws = generator or torch.Generator().manual_seed(0)
    x, total = noise, len(schedule.times)
    model_times = _on_device(schedule.times, noise.device)
    for index, t in enumerate(schedule.times):  # on the CPU: nothing waits for the GPU
        weight = weight_at(sampler, t)
        velocity = guided(backbone, weight, x, model_times[index], frames, contexts)
        clean = clean_from(x, velocity, float(t))
        x = schedule.step(index, velocity, x, draws)
        yield SamplingStep(done=index + 1, total=total, t=float(t), latents=x, clean=clean)


def _on_device(times: Tensor, device: torch.device) -> Tensor:
    return times.to(device, torch.float32 if device.type == "mps" else times.dtype)  # no float64


def weight_at(sampler: Sampler, t: Tensor) -> float:
    """Return the weight of guidance at time t, a number in a tensor: 0.9 in float32 is 0.9."""
    low = sampler.low_guidance
    return sampler.guidance if low is None or bool(t >= sampler.low_below) else low


def guided(
    backbone: Backbone, weight: float, x: Targets, t: Tensor, frames: Frames, contexts: Contexts
) -> Tensor:
    """Return the velocity v₀ + w·(v − v₀) at time t, in the dtype of `x`; v where w is 1.

    In bf16 the difference is taken after rounding up to that dtype, which diffusers does before.
    """
    times = t.expand(x.shape[0])
    prompt = backbone.velocity(x, times, frames, contexts.prompt).to(x.dtype)
    if weight == 1.0 or contexts.negative is None:
        return prompt
    negative = backbone.velocity(x, times, frames, contexts.negative).to(x.dtype)
    return negative + weight * (prompt - negative)


@frozen(eq=False, kw_only=True)
class Contexts:
    """What the backbone reads at every step, made once for all of them.

    Attributes:
        prompt: of the prompt.
        negative: of the negative one; None where the sampler never guides.
    """

    prompt: Context
    negative: Context | None

    @classmethod
    def of(cls, backbone: Backbone, sampler: Sampler, conditioning: Conditioning) -> Contexts:
        """Return the contexts; an `isolated` memory is cached once for both."""
        memory = conditioning.memory
        if isinstance(memory, Memory) and backbone.caches:
            memory = backbone.remember(memory)
        prompt = backbone.context(conditioning.text, memory)
        if not sampler.guided:
            return cls(prompt=prompt, negative=None)
        negative, batch = conditioning.null_text, conditioning.text.embeddings.shape[0]
        if negative.embeddings.shape[0] != batch:
            negative = negative.select([0] * batch)
        return cls(prompt=prompt, negative=backbone.context(negative, memory))


def draw_noise(channels: int, size: Size3, generator: torch.Generator, batch: int = 1) -> Targets:
    """Draw X_1 as diffusers does, float32; from a CPU's generator it is the same everywhere."""
    shape = (batch, channels, size.time, size.height, size.width)
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)


@frozen(eq=False, kw_only=True)
class Schedule:
    """A scheduler at work on one sample; it has a state, so make one for each.

    Attributes:
        scheduler: of diffusers.
        times: t of every pass of the model, in order, `[steps]` (heun: `[2·steps − 1]`), see
            `times_of`. The model counts 1000·t, which is the scheduler's timestep to the bit.
    """

    scheduler: Any
    times: Tensor

    @classmethod
    def of(cls, sampler: Sampler, shift: float, device: torch.device) -> Schedule:
        """Return the schedule of a sampler on `device`; `shift` counts where it names none."""
        scheduler = make_scheduler(sampler.scheduler, sampler.shift or shift)
        if SCHEDULERS[sampler.scheduler].even_times:
            # Evenly spaced times, shifted once: without them diffusers shifts the last one twice.
            even = [1 - i / sampler.steps for i in range(sampler.steps)]
            scheduler.set_timesteps(sigmas=even, device=device)
        else:
            scheduler.set_timesteps(sampler.steps, device=device)
        scheduler.set_begin_index(0)
        count = len(scheduler.timesteps)
        return cls(
            scheduler=scheduler, times=times_of(scheduler.timesteps, scheduler.sigmas[:count])
        )

    def step(self, index: int, velocity: Tensor, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the latents after pass `index`; the passes follow their order.

        Args:
            index: of the pass.
            velocity: what the model predicts at them.
            x: the latents before it.
            generator: of the noise that some schedulers add.
        """
        run: Callable[..., Any] = self.scheduler.step
        adds_noise = "generator" in inspect.signature(run).parameters
        noise = {"generator": generator} if adds_noise else {}
        timestep = self.scheduler.timesteps[index]
        latents: Tensor = run(velocity, timestep, x, return_dict=False, **noise)[0]
        return latents


def make_scheduler(name: str, shift: float) -> Any:
    """Build the scheduler that a name in `SCHEDULERS` stands for, for flows of this shift."""
    cls = getattr(diffusers, SCHEDULERS[name].cls)
    if "use_flow_sigmas" not in inspect.signature(cls.__init__).parameters:
        return cls(shift=shift)
    return cls(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def times_of(timesteps: Tensor, sigmas: Tensor) -> Tensor:
    """Return times t with 1000·t equal to the timesteps to the bit, on the CPU.

    They are the noise levels themselves, float32, where the scheduler keeps to these. Some round
    down to whole timesteps, of which float32 misses ten (127/1000 · 1000 ≠ 127): then float64.
    """
    counts, levels = timesteps.cpu(), sigmas.cpu().float()
    if counts.is_floating_point() and torch.equal(levels * TIMESTEPS, counts.float()):
        return levels
    return counts.double() / TIMESTEPS
