"""How noise becomes latents, as a spec; light: no torch, no diffusers."""

from __future__ import annotations

from typing import Any, NamedTuple

from attrs import Attribute, field, frozen

from ..interfaces.spec import doc, ge, in_, unit


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
    steps: int = field(default=50, validator=ge(1), metadata=doc("denoising steps, ≥ 1"))
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
