"""How noise becomes latents, as a spec; light: no torch, no diffusers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from attrs import Attribute, field, frozen

from ..errors import UserError
from ..interfaces.spec import between, doc, ge, in_, unit
from ..values.grid import Geometry, MemoryLimit

STEPS = 10_000  # of a sampler, at most


class DiffusersScheduler(NamedTuple):
    """A flow scheduler of diffusers: its class, and whether it is given even times to shift."""

    cls: str
    even_times: bool


SCHEDULERS = {
    "euler": DiffusersScheduler("FlowMatchEulerDiscreteScheduler", even_times=True),
    "heun": DiffusersScheduler("FlowMatchHeunDiscreteScheduler", even_times=False),
    "lcm": DiffusersScheduler("FlowMatchLCMScheduler", even_times=True),
    "unipc": DiffusersScheduler("UniPCMultistepScheduler", even_times=False),
    "dpm++": DiffusersScheduler("DPMSolverMultistepScheduler", even_times=False),
    "deis": DiffusersScheduler("DEISMultistepScheduler", even_times=False),
    "sa": DiffusersScheduler("SASolverScheduler", even_times=False),
}


def _check_positive(instance: Any, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and not value > 0:
        raise ValueError(f"must be more than 0, or null for the backbone's, not {value:g}")


def _check_weight(instance: Any, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and value < 0:
        raise ValueError(f"must be 0 or more, or null for `guidance`, not {value:g}")


@frozen(kw_only=True)
class Sampler:
    """From noise to latents: scheduler, steps and guidance; the defaults are Wan's.

    HunyuanVideo is sampled with `euler` and guidance 1: the scale that it was distilled on is a
    field of its backbone.
    """

    scheduler: str = field(
        default="unipc",
        validator=in_(tuple(SCHEDULERS)),
        metadata=doc(
            "unipc (Wan), euler (HunyuanVideo), heun (two passes a step), dpm++, deis; lcm and sa "
            "draw noise at every step"
        ),
    )
    steps: int = field(
        default=50,
        validator=between(1, STEPS),
        metadata=doc(f"denoising steps, 1 to {STEPS:,}"),
    )
    guidance: float = field(
        default=5.0,
        validator=ge(0.0),
        metadata=doc("weight of classifier-free guidance by the prompt; 1 is none"),
    )
    low_guidance: float | None = field(
        default=None,
        validator=_check_weight,
        metadata=doc("its weight at times below `low_below` (Wan 2.2 14B); null: the same"),
    )
    low_below: float = field(
        default=0.875,
        validator=unit,
        metadata=doc("the time below which `low_guidance` counts, 0 to 1"),
    )
    shift: float | None = field(
        default=None,
        validator=_check_positive,
        metadata=doc("timestep shift, > 0; more: more steps at high noise; null: the backbone's"),
    )

    @property
    def guided(self) -> bool:
        """Whether some step reads the empty prompt, too."""
        return {self.guidance, self.low_guidance} - {None, 1.0} != set()


def _check_seconds(instance: Any, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and value < 0:
        raise ValueError(f"must be 0 (no limit) or more, or null for the trained, not {value:g}")


def _check_tokens(instance: Any, attribute: Attribute[Any], value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"must be 1 or more, or null for no limit, not {value}")


@frozen(kw_only=True)
class MemoryBudget:
    """How much of the past a take remembers; what is older is dropped, by whole blocks of latents.

    So memory and the cost of a step grow up to the budget and are flat from there on.
    """

    max_history_seconds: float | None = field(
        default=None,
        validator=_check_seconds,
        metadata=doc(
            "seconds of video that memory covers at most, the first ones counted; 0: no limit; "
            "null: the longest history that was trained, or where max_memory_tokens is given, none"
        ),
    )
    max_memory_tokens: int | None = field(
        default=None,
        validator=_check_tokens,
        metadata=doc("tokens that memory has at most, the first ones counted, ≥ 1; null: no limit"),
    )
    keep_first_seconds: float = field(
        default=0.0,
        validator=ge(0.0),
        metadata=doc("seconds at the beginning of a take that are never dropped, ≥ 0"),
    )

    def seconds(self, trained: float) -> float | None:
        """Return the seconds that memory covers at most, `trained` ones by default; None: any."""
        if self.max_history_seconds is None:
            return trained if self.max_memory_tokens is None else None
        return self.max_history_seconds or None

    def limit(self, geometry: Geometry, block: int, *, trained: float) -> MemoryLimit:
        """Return the budget in latents and tokens.

        Args:
            geometry: of the backbone.
            block: latents by which memory goes, `Experiment.memory_block`.
            trained: seconds of the longest history that was trained.

        Raises:
            UserError: the budget does not hold the first seconds and one block more.
        """
        seconds, first = self.seconds(trained), _latents(geometry, self.keep_first_seconds)
        every = MemoryLimit(block=block, tokens=self.max_memory_tokens, first=first)
        if seconds is None:
            return every
        latents, least = _latents(geometry, seconds), every.first_covered + block
        if latents < least:
            frames = 1 + (least - 1) * geometry.vae_stride.time
            shortest = math.ceil(100 * frames / geometry.fps) / 100
            raise UserError(
                f"max_history_seconds {seconds:g} is too short: with keep_first_seconds "
                f"{self.keep_first_seconds:g} and blocks of {block} latents at {geometry.fps:g} "
                f"frames a second it must be {shortest:.2f} or more, or 0 for no limit"
            )
        return MemoryLimit(block=block, latents=latents, tokens=every.tokens, first=first)


def _latents(geometry: Geometry, seconds: float) -> int:
    return geometry.latents(geometry.frames(seconds))
