"""Diffusers' flow schedulers behind one face: times between 0 and 1, and a step."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from attrs import frozen
from torch import Tensor

from .spec import SCHEDULERS, Sampler

STEPS = 1000.0  # diffusers' models and schedulers count time in thousandths


@frozen(eq=False, kw_only=True)
class Schedule:
    """A scheduler at work on one sample; it keeps what it has seen, so make one for each.

    Attributes:
        scheduler: of diffusers.
        times: t of every pass of the model, in order, `[steps]` (heun: `[2·steps − 1]`), see
            `times_of`. The model counts 1000·t, which is the scheduler's timestep to the bit.
    """

    scheduler: Any
    times: Tensor

    @classmethod
    def of(cls, sampler: Sampler, shift: float, device: torch.device) -> Schedule:
        """Give the schedule of a sampler on `device`; `shift` counts where it names none."""
        scheduler = make_scheduler(sampler.scheduler, sampler.shift or shift)
        if SCHEDULERS[sampler.scheduler][1]:
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
        """Give the latents after pass `index`; the passes follow their order.

        Args:
            index: of the pass.
            velocity: what the model said.
            x: the latents before it.
            generator: of the noise that some schedulers add.
        """
        run: Callable[..., Any] = self.scheduler.step
        draws = "generator" in inspect.signature(run).parameters
        noise = {"generator": generator} if draws else {}
        timestep = self.scheduler.timesteps[index]
        after: Tensor = run(velocity, timestep, x, return_dict=False, **noise)[0]
        return after


def make_scheduler(name: str, shift: float) -> Any:
    """Give the scheduler that a name in `SCHEDULERS` stands for, for flows of this shift."""
    cls = getattr(diffusers, SCHEDULERS[name][0])
    if "use_flow_sigmas" not in inspect.signature(cls.__init__).parameters:
        return cls(shift=shift)
    return cls(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def times_of(timesteps: Tensor, sigmas: Tensor) -> Tensor:
    """Give times t with 1000·t equal to the timesteps to the bit, on the CPU.

    They are the noise levels themselves, float32, where the scheduler keeps to these. Some round
    down to whole timesteps, of which float32 misses ten (127/1000 · 1000 ≠ 127): then float64.
    """
    counted, levels = timesteps.cpu(), sigmas.cpu().float()
    if counted.is_floating_point() and torch.equal(levels * STEPS, counted.float()):
        return levels
    return counted.double() / STEPS
