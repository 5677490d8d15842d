"""Specs of the built-in compressors; light: no torch."""

from __future__ import annotations

import math
from typing import Any

from attrs import Attribute, field, frozen

from ...core.interfaces.spec import CompressorSpec, between, doc, each, ge, in_, instance_of, named
from ...core.values.grid import STEPS, Rate

DTYPES = ("float32", "float16", "bfloat16")
FRAMEPACK = (1, 2, 4)  # rates that FramePack has projections for


EDGES = doc(
    "where tokens of incomplete cells at right and bottom stand: ceil in the middle of what they "
    "cover; whole evenly spaced, where whole cells would be"
)


@frozen(kw_only=True)
class Conv(CompressorSpec):
    """The paper's encoder: an LR branch through the DiT's own projection plus an HR conv branch.

    Source: method.md §2; what the paper does not say is a field here with our default.
    """

    rate: Rate = field(
        default=Rate(height=4, width=4, time=2),
        validator=instance_of(Rate),
        metadata=doc("latent cells a memory cell stands for, HxWxT, steps of 1, 2, 4 or 8"),
    )
    channels: tuple[int, ...] = field(
        default=(64, 128, 256, 512),
        validator=each(ge(1), at_least=1),
        metadata=doc(
            "widths of the convs, first to last; further stages keep the last",
            recipe="encoder.widths",
        ),
    )
    kernel: int = field(
        default=3,
        validator=in_((3, 4)),
        metadata=doc("kernel of strided convs in space: 3, or 4, which centres tokens exactly"),
    )
    norm: str = field(
        default="none",
        validator=in_(("none", "rms")),
        metadata=doc("norm over channels before each activation: none or rms"),
    )
    time_padding: str = field(
        default="replicate",
        validator=in_(("replicate", "zeros")),
        metadata=doc("what causal convs see before the first latent: replicate (of it) or zeros"),
    )
    attention: str = field(
        default="window",
        validator=in_(("window", "full", "none")),
        metadata=doc("window: block-causal, appending is exact; full: all memory frames; none"),
    )
    window: int = field(
        default=4, validator=ge(1), metadata=doc("memory frames that windowed attention sees, ≥ 1")
    )
    layers: int = field(
        default=1, validator=ge(1), metadata=doc("attention layers, ≥ 1 (none: attention=none)")
    )
    heads: int = field(
        default=8, validator=ge(1), metadata=doc("attention heads, ≥ 1", recipe="encoder.heads")
    )
    head_width: int = field(
        default=64,
        validator=ge(1),
        metadata=doc("width of an attention head, ≥ 1", recipe="encoder.head_width"),
    )
    rounding: str = field(
        default="ceil",
        validator=in_(("ceil", "floor", "whole")),
        metadata=doc(
            "incomplete cells at right and bottom: ceil keeps them, in the middle of what they "
            "cover; whole keeps them, evenly spaced, where whole cells would be; floor drops them",
            recipe="encoder.rounding",
        ),
    )
    lr: bool = field(
        default=True,
        validator=instance_of(bool),
        metadata=doc("the LR branch; False is the paper's Without-LR"),
    )
    hr: bool = field(
        default=True,
        validator=instance_of(bool),
        metadata=doc("the HR branch; False is the paper's Only-LR"),
    )
    stem: str = field(
        default="latents",
        validator=in_(("latents", "pixels")),
        metadata=doc(
            "what the HR branch reads: latents; or pixels, through a conv of the VAE's own stride "
            "(4×8×8), which need frames in the store"
        ),
    )
    features: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc("give the HR branch's last hidden states to cross-attention in every block"),
    )
    kernels: str = field(
        default="auto",
        validator=in_(("auto", "reference", "triton")),
        eq=False,  # how it is worked out, not what: no part of a run's identity
        metadata=doc(
            "what runs convs, and attention of chunks: auto (Triton on NVIDIA GPUs of sm_80 or "
            "newer under Linux, else reference), reference (plain torch) or triton (refused where "
            "it cannot run)"
        ),
    )
    sums: str = field(
        default="float32",
        validator=in_(("float32", "float16")),
        eq=False,
        metadata=doc(
            "number type of sums in Triton kernels: float32; or float16, promoted to float32 every "
            "64 products, of float16 numbers, which GeForce cards multiply twice as fast"
        ),
    )

    def __attrs_post_init__(self) -> None:
        if not (self.lr or self.hr):
            raise ValueError("lr and hr are both off: nothing would be remembered")
        if not self.hr and (self.features or self.stem == "pixels"):
            raise ValueError("features and stem=pixels are of the HR branch: hr is off")


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
    rounding: str = field(default="ceil", validator=in_(("ceil", "whole")), metadata=EDGES)
    layers: int = field(default=4, validator=ge(1), metadata=doc("transformer layers, ≥ 1"))
    heads: int = field(
        default=8,
        validator=ge(1),
        metadata=doc(
            "attention heads, ≥ 1; layers are heads × head_width wide", recipe="encoder.heads"
        ),
    )
    head_width: int = field(
        default=64, metadata=doc("width of a head, ≥ 6, even", recipe="encoder.head_width")
    )
    window: int = field(
        default=4, validator=ge(1), metadata=doc("memory frames that a layer sees, ≥ 1")
    )
    ffn: int = field(
        default=2048,
        validator=ge(1),
        metadata=doc("width between, feed-forward, ≥ 1", recipe="encoder.ffn"),
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


def _ages(instance: Any, attribute: Attribute[Any], value: tuple[tuple[int, int], ...]) -> None:
    for rate, latents in value:
        if rate not in STEPS:
            raise ValueError(f"rates are 1, 2, 4 or 8, not {rate}")
        if latents < 1:
            raise ValueError(f"each rate holds 1 latent or more, not {latents}")
    rates = [rate for rate, _ in value]
    if any(b <= a for a, b in zip(rates, rates[1:], strict=False)):
        raise ValueError(f"rates grow with age, newest first, not {rates}")


@frozen(kw_only=True)
class Patchifier(CompressorSpec):
    """The Large Patchifier: one strided projection a rate, as FramePack has it (Table 1).

    Without a schedule one rate holds for all of the history; with one, the rate grows with age.
    """

    rate: Rate = field(
        default=Rate(height=4, width=4, time=2),
        validator=instance_of(Rate),
        metadata=doc("latent cells a memory cell stands for, HxWxT; unused under a schedule"),
    )
    rounding: str = field(default="ceil", validator=in_(("ceil", "whole")), metadata=EDGES)
    schedule: tuple[tuple[int, int], ...] = field(
        default=(),
        validator=_ages,
        metadata=doc(
            "(rate, latents) by age, newest first, each rate in height, width and time; empty: "
            "one rate. FramePack's is [[1,1],[2,2],[4,16]]"
        ),
    )
    tail: str = field(
        default="drop",
        validator=in_(("drop", "mean", "rest")),
        metadata=doc(
            "latents older than the schedule: drop; mean: their mean as one frame at the last "
            "rate; rest: the last rate takes all of them, so that memory grows"
        ),
    )
    weights: str | None = field(
        default=None,
        validator=named("weights"),
        metadata=doc(
            "a FramePack transformer (safetensors file, diffusers folder or hub id, as "
            "backbone.weights) to take the projections of rates 1, 2 and 4 from; null: the DiT's "
            "own, spread over the kernels"
        ),
    )

    def __attrs_post_init__(self) -> None:
        rates = [rate for rate, _ in self.schedule]
        if self.tail != "drop" and not rates:
            raise ValueError(f"tail {self.tail} needs a schedule; without one nothing is dropped")
        if self.weights is not None and not (rates and set(rates) <= set(FRAMEPACK)):
            raise ValueError("weights are FramePack's: they need a schedule of rates 1, 2 and 4")


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
        limits = [x for x in (self.rate, self.per_second, self.threshold) if x is not None]
        if len(limits) != 1:
            raise ValueError("exactly one of rate, per_second and threshold must be given")
        if self.rate and self.block < self.rate.time:
            raise ValueError(f"blocks of {self.block} latents hold no block of rate {self.rate}")


@frozen(kw_only=True)
class Window(CompressorSpec):
    """The last latents uncompressed, as the DiT's own tokens (method.md §5, sliding window).

    It is for what is still on the screen, so it ends at a hard cut. It stands beside a compressor
    that remembers all: `--set 'compressors=["conv", "window"]'`.
    """

    latents: int = field(
        default=3, validator=ge(1), metadata=doc("newest latents that are kept, ≥ 1")
    )
    across_cuts: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc("keep latents from before a hard cut, too; false drops them"),
    )


@frozen(kw_only=True)
class ContactSheet(CompressorSpec):
    """The newest frames shrunk into one picture, which the codec encodes; nothing is trained.

    It needs pixels, and the backbone's codec wherever it runs.
    """

    side: int = field(
        default=3, validator=between(1, 8), metadata=doc("frames along a side, 1 to 8: 3 is 3×3")
    )
    every: int = field(
        default=1, validator=ge(1), metadata=doc("latents from one frame to the next, ≥ 1")
    )


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


@frozen(kw_only=True)
class VaeProj(CompressorSpec):
    """An external, highly compressing video VAE on the pixels, and a learned projection (V6)."""

    weights: str | None = field(
        default=None,
        validator=named("weights"),
        metadata=doc("a diffusers folder or hub id of an LTX video VAE; needed to run"),
    )
    subfolder: str = field(
        default="",
        validator=instance_of(str),
        metadata=doc("where in `weights` the VAE is, such as vae; empty: at its top"),
    )
    space: int = field(
        default=32,
        validator=ge(1),
        metadata=doc("pixel rows and columns to a cell of the VAE; must be its own"),
    )
    time: int = field(
        default=8, validator=ge(1), metadata=doc("frames to a cell of the VAE; must be its own")
    )
    block: int = field(
        default=4,
        validator=ge(1),
        metadata=doc(
            "cells in time that the VAE sees at once, ≥ 1: more is nearer to one pass over the "
            "video, and holds more frames back"
        ),
    )
    dtype: str = field(
        default="float32", validator=in_(DTYPES), metadata=doc("number type of the frozen VAE")
    )


@frozen(kw_only=True)
class Clip(CompressorSpec):
    """Embeddings of every k-th frame by a frozen image encoder, and a learned projection (V6)."""

    weights: str | None = field(
        default=None,
        validator=named("weights"),
        metadata=doc("a transformers folder or hub id of CLIP or SigLIP; needed to run"),
    )
    subfolder: str = field(
        default="",
        validator=instance_of(str),
        metadata=doc("where in `weights` the encoder is, such as image_encoder; empty: at its top"),
    )
    every: int = field(
        default=2,
        validator=ge(1),
        metadata=doc("latent frames from one embedded frame to the next, ≥ 1"),
    )
    grid: int = field(
        default=1,
        validator=ge(1),
        metadata=doc("tokens down and across a frame: 1 the pooled embedding, else means of cells"),
    )
    dtype: str = field(
        default="float32", validator=in_(DTYPES), metadata=doc("number type of the frozen encoder")
    )
