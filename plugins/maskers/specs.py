"""Specs of the built-in maskers; light: no torch."""

from __future__ import annotations

from attrs import field, frozen

from ...core.interfaces.spec import MaskerSpec, between, doc, each, ge, gt, in_, unit


@frozen(kw_only=True)
class OmegaSpec(MaskerSpec):
    """How Ω, the frames that are asked for, is drawn: shared by all built-in maskers."""

    counts: tuple[int, ...] = field(
        default=(1, 2, 4),
        validator=each(ge(1), at_least=1),
        metadata=doc(
            "how many latent frames Ω may hold; one count is drawn for a batch",
            recipe="masker.counts",
        ),
    )
    contiguous: float = field(
        default=0.5,
        validator=unit,
        metadata=doc("chance that Ω is one run of frames instead of scattered, 0 to 1"),
    )
    where: str = field(
        default="random",
        validator=in_(("random", "last")),
        metadata=doc(
            "random: anywhere; last: always the newest frames, a control that lets the encoder "
            "spend its whole context on them"
        ),
    )


@frozen(kw_only=True)
class HidingSpec(OmegaSpec):
    """How the frames outside Ω are hidden: shared by all maskers that hide any."""

    clean: float = field(
        default=0.5,
        validator=unit,
        metadata=doc(
            "chance that a sample's history is left clean, as in Stage II, 0 to 1",
            recipe="masker.clean",
        ),
    )
    lr_level: str = field(
        default="min",
        validator=in_(("min", "mean", "max")),
        metadata=doc("level of an LR latent from the HR latents it covers: min, mean or max"),
    )


@frozen(kw_only=True)
class GradedSpec(HidingSpec):
    """How the level of each frame is drawn, L(low, 1): shared by maskers that draw one."""

    low: float = field(
        default=0.2,
        validator=unit,
        metadata=doc("least level of masked frames, 0 to 1: L(low, 1)"),
    )
    mean: float = field(
        default=0.0,
        validator=between(-10, 10),
        metadata=doc("mean of the logit-normal that levels are drawn from, −10 to 10"),
    )
    std: float = field(
        default=1.0,
        validator=between(0.01, 10),
        metadata=doc("its standard deviation, 0.01 to 10"),
    )
    shift: float = field(
        default=1.0, validator=gt(0.0), metadata=doc("its timestep shift (SD3), > 0")
    )


@frozen(kw_only=True)
class Noise(GradedSpec):
    """Masks by noise: all frames but Ω get a noise level drawn per frame (method.md §2, §3)."""


@frozen(kw_only=True)
class Scale(GradedSpec):
    """Masks by scaling the range: values shrink to (1 − level) of themselves (method.md §3)."""


@frozen(kw_only=True)
class Shift(GradedSpec):
    """Masks by translation: each frame's values move by its level in a random direction (§3)."""

    amount: float = field(
        default=3.0,
        validator=gt(0.0),
        metadata=doc("shift at level 1, in standard deviations of latents (1); also of pixels"),
    )


@frozen(kw_only=True)
class Drop(HidingSpec):
    """Masks by leaving out: frames outside Ω are replaced by a constant."""

    fill: str = field(
        default="zeros",
        validator=in_(("zeros", "mean")),
        metadata=doc("zeros, or the mean of each channel over the sample's real frames"),
    )


@frozen(kw_only=True)
class Unmasked(OmegaSpec):
    """Masks nothing: the whole history stays clean, the control without masking."""
