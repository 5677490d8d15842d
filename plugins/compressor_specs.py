"""Specs of the compressors beside `conv`; light, as those of the other plugins."""

from __future__ import annotations

import math
from typing import Any

from attrs import Attribute, field, frozen

from ..core.grid import STEPS, Rate
from ..core.spec import CompressorSpec, doc, each, ge, in_, instance_of


@frozen(kw_only=True)
class Transformer(CompressorSpec):
    """An encoder of attention only: one projection by the rate, then causal pre-norm layers.

    A layer sees a window of memory frames, so that L layers reach L · (window − 1) frames back and
    appending is exact. The LR branch is that of `conv`.
    """

    rate: Rate = field(
        default=Rate(height=4, width=4, time=2),
        validator=instance_of(Rate),
        metadata=doc("latent cells a memory cell stands for, HxWxT, steps of 1, 2, 4 or 8"),
    )
    layers: int = field(default=4, validator=ge(1), metadata=doc("transformer layers, ≥ 1"))
    heads: int = field(
        default=8,
        validator=ge(1),
        metadata=doc("attention heads, ≥ 1; layers are heads × head_width wide"),
    )
    head_width: int = field(default=64, metadata=doc("width of a head, ≥ 6, even"))
    window: int = field(
        default=4, validator=ge(1), metadata=doc("memory frames that a layer sees, ≥ 1")
    )
    ffn: int = field(
        default=2048, validator=ge(1), metadata=doc("width between, feed-forward, ≥ 1")
    )
    lr: bool = field(
        default=True,
        validator=instance_of(bool),
        metadata=doc("the LR branch: the DiT's own tokens of a small video"),
    )
    hr: bool = field(
        default=True,
        validator=instance_of(bool),
        metadata=doc("the HR branch: the transformer on full-size latents"),
    )
    features: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc("give the HR branch's last hidden states to cross-attention in every block"),
    )

    @head_width.validator
    def _rotates(self, attribute: Attribute[int], value: int) -> None:
        if value < 6 or value % 2:
            raise ValueError(f"must be even and ≥ 6 (rotary in three axes), not {value}")

    def __attrs_post_init__(self) -> None:
        if not (self.lr or self.hr):
            raise ValueError("lr and hr are both off: nothing would be remembered")
        if self.features and not self.hr:
            raise ValueError("features come from the HR branch, which is off")


def _paper() -> tuple[CompressorSpec, ...]:
    from .specs import Conv  # which hands on the specs of this file

    rates = (Rate(height=4, width=4, time=2), Rate(height=2, width=2, time=8))
    return tuple(Conv(rate=rate) for rate in rates)


@frozen(kw_only=True)
class DualEncoder(CompressorSpec):
    """Several encoders as one, by default the paper's two: 4x4x2 beside 2x2x8.

    Source: method.md §5. An experiment's list of compressors does the same.
    """

    encoders: tuple[CompressorSpec, ...] = field(
        factory=_paper,
        validator=each(instance_of(CompressorSpec), at_least=1),
        metadata=doc("encoders whose tokens stand side by side, in this order; no two the same"),
    )

    def __attrs_post_init__(self) -> None:
        if len(set(self.encoders)) < len(self.encoders):
            raise ValueError("two encoders are the same: the second would remember nothing new")


@frozen(kw_only=True)
class Window(CompressorSpec):
    """The last latents uncompressed, as the DiT's own tokens (method.md §5, sliding window)."""

    latents: int = field(
        default=3, validator=ge(1), metadata=doc("newest latents that are kept, ≥ 1")
    )


@frozen(kw_only=True)
class Pool(CompressorSpec):
    """The mean of the DiT's own tokens over the cells of a rate; nothing is trained."""

    rate: Rate = field(
        default=Rate(height=4, width=4, time=2),
        validator=instance_of(Rate),
        metadata=doc("patch cells and latents that one token is the mean of, HxWxT"),
    )


@frozen(kw_only=True)
class Merge(CompressorSpec):
    """The DiT's own tokens, the most similar of neighbours in time and space merged into means.

    Exactly one of `rate`, `per_second` and `threshold` says how far merging goes. Nothing is
    trained. Source: token merging (Bolya et al. 2023) between the six neighbours of a grid, in the
    order of what it loses (Ward 1963).
    """

    rate: Rate | None = field(
        default=Rate(height=4, width=4, time=2),
        metadata=doc("as many tokens as this rate makes, HxWxT; null: not by rate"),
    )
    per_second: float | None = field(
        default=None, metadata=doc("tokens a second of video, > 0; null: not by time")
    )
    threshold: float | None = field(
        default=None,
        metadata=doc(
            "greatest RMS difference of latent values that merges, ≥ 0; null: not by this"
        ),
    )
    block: int = field(
        default=4,
        validator=in_(STEPS),
        metadata=doc("latents within which tokens merge, 1, 2, 4 or 8, ≥ the rate's time step"),
    )

    @rate.validator
    def _is_rate(self, attribute: Attribute[Any], value: Rate | None) -> None:
        if value is not None:
            instance_of(Rate)(self, attribute, value)

    @per_second.validator
    def _is_budget(self, attribute: Attribute[float | None], value: float | None) -> None:
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"must be > 0 or null, not {value:g}")

    @threshold.validator
    def _is_difference(self, attribute: Attribute[float | None], value: float | None) -> None:
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"must be ≥ 0 or null, not {value:g}")

    def __attrs_post_init__(self) -> None:
        given = [x for x in (self.rate, self.per_second, self.threshold) if x is not None]
        if len(given) != 1:
            raise ValueError("exactly one of rate, per_second and threshold must be given")
        if self.rate and self.block < self.rate.time:
            raise ValueError(f"blocks of {self.block} latents hold no block of rate {self.rate}")


@frozen(kw_only=True)
class Keyframes(CompressorSpec):
    """The newest keyframes as the DiT's own tokens: every so many latents, or each shot's first."""

    every: int | None = field(
        default=8,
        metadata=doc("latents from one keyframe to the next, ≥ 1; null: only the first of a shot"),
    )
    shots: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc("count from each shot's first latent (needs cache.cuts), not from latent 0"),
    )
    newest: int = field(default=8, validator=ge(1), metadata=doc("keyframes that are kept, ≥ 1"))
    rate: Rate = field(
        default=Rate(height=1, width=1, time=1),
        metadata=doc("patch cells that one token is the mean of, HxWx1; 1x1x1: uncompressed"),
    )

    @every.validator
    def _counts(self, attribute: Attribute[Any], value: int | None) -> None:
        if value is not None and value < 1:
            raise ValueError(f"must be ≥ 1 or null, not {value}")

    @rate.validator
    def _of_one_latent(self, attribute: Attribute[Rate], value: Rate) -> None:
        instance_of(Rate)(self, attribute, value)
        if value.time != 1:
            raise ValueError(f"a keyframe is one latent: must be {value.height}x{value.width}x1")
