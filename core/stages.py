"""Specs of caching and measuring; that of training is in `training`."""

from __future__ import annotations

from attrs import field, frozen

from .grid import Rate
from .spec import (
    between,
    doc,
    each,
    ge,
    gt,
    in_,
    instance_of,
)


@frozen(kw_only=True)
class CacheSpec:
    """How videos become a latent store."""

    area: int = field(
        default=96 * 160,
        validator=ge(64),
        metadata=doc("pixels of a frame: size buckets hold at least this many, ≥ 64"),
    )
    max_aspect: float = field(
        default=3.0, validator=ge(1.0), metadata=doc("longest side over shortest of a bucket, ≥ 1")
    )
    min_seconds: float = field(
        default=4.0, validator=gt(0.0), metadata=doc("shorter videos are refused, seconds, > 0")
    )
    rates: tuple[Rate, ...] = field(
        default=(),
        validator=each(instance_of(Rate)),
        metadata=doc("LR rates to cache beside those that the plugins need"),
    )
    pixels: bool = field(
        default=True,
        validator=instance_of(bool),
        metadata=doc("keep the frames too (uint8): measuring compares with them"),
    )
    mirror: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc("cache every video a second time, mirrored left to right, to train on"),
    )
    dtype: str = field(
        default="float16",
        validator=in_(("float32", "float16", "bfloat16")),
        metadata=doc("number type of cached latents: float32, float16 or bfloat16"),
    )
    cuts: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc(
            "look for hard cuts, for captions by shot (the extra longtake[cuts]); false keeps "
            "those found before"
        ),
    )
    chunk: int = field(
        default=32, validator=ge(4), metadata=doc("frames decoded at a time, ≥ 4: bounds memory")
    )


@frozen(kw_only=True)
class MeasureSpec:
    """What `measure` looks at."""

    seconds: float = field(
        default=10.0, validator=gt(0.0), metadata=doc("length of the history, seconds, > 0")
    )
    long_seconds: float = field(
        default=20.0,
        validator=ge(0.0),
        metadata=doc("clips of this length are measured at it, too, seconds; 0 or ≤ seconds: off"),
    )
    seed: int = field(
        default=0, validator=between(0, 2**62), metadata=doc("seed of noise and Ω, 0 to 2^62")
    )
    draws: int = field(
        default=8,
        validator=ge(1),
        metadata=doc("noise draws a clip for memory_gain, ≥ 1: more narrows nothing but its noise"),
    )
