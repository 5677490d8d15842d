"""Specs of compressors that come from elsewhere: FramePack's patchifier, VAEs, image encoders."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, field, frozen

from ..core.grid import STEPS, Rate
from ..core.spec import CompressorSpec, doc, ge, in_, instance_of

DTYPES = ("float32", "float16", "bfloat16")
FRAMEPACK = (1, 2, 4)  # rates that FramePack has projections for


def _ages(instance: Any, attribute: Attribute[Any], value: tuple[tuple[int, int], ...]) -> None:
    for rate, latents in value:
        if rate not in STEPS:
            raise ValueError(f"rates are 1, 2, 4 or 8, not {rate}")
        if latents < 1:
            raise ValueError(f"each rate holds 1 latent or more, not {latents}")
    rates = [rate for rate, _ in value]
    if any(b <= a for a, b in zip(rates, rates[1:], strict=False)):
        raise ValueError(f"rates grow with age, newest first, not {rates}")


def _named(instance: Any, attribute: Attribute[Any], value: str | None) -> None:
    if value is not None and not value:
        raise ValueError("must name weights, or be null")


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
        validator=_named,
        metadata=doc(
            "a FramePack transformer (safetensors file or diffusers folder) to take the "
            "projections of rates 1, 2 and 4 from; null: the DiT's own, spread over the kernels"
        ),
    )

    def __attrs_post_init__(self) -> None:
        rates = [rate for rate, _ in self.schedule]
        if self.tail != "drop" and not rates:
            raise ValueError(f"tail {self.tail} needs a schedule; without one nothing is dropped")
        if self.weights is not None and not (rates and set(rates) <= set(FRAMEPACK)):
            raise ValueError("weights are FramePack's: they need a schedule of rates 1, 2 and 4")


@frozen(kw_only=True)
class VaeProj(CompressorSpec):
    """An external, highly compressing video VAE on the pixels, and a learned projection (V6)."""

    weights: str | None = field(
        default=None,
        validator=_named,
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
        validator=_named,
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
