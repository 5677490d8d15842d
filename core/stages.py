"""Specs of the stages of an experiment: caching, training, measuring."""

from __future__ import annotations

from attrs import field, frozen

from .grid import Rate
from .lora import LoRA
from .spec import (
    between,
    doc,
    each,
    ge,
    gt,
    in_,
    instance_of,
    unit,
)


def _span(instance: object, attribute: object, value: tuple[float, float]) -> None:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"needs two numbers of seconds, 0 < first <= second, not {value}")


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
    chunk: int = field(
        default=32, validator=ge(4), metadata=doc("frames decoded at a time, ≥ 4: bounds memory")
    )


@frozen(kw_only=True)
class TrainSpec:
    """How Stage I trains (Eq. 3)."""

    steps: int = field(default=2000, validator=ge(1), metadata=doc("optimizer steps, ≥ 1"))
    batch: int = field(
        default=6, validator=ge(1), metadata=doc("samples in a batch over all processes, ≥ 1")
    )
    seconds: tuple[float, float] = field(
        default=(4.0, 20.0),
        validator=_span,
        metadata=doc("shortest and longest training window, seconds"),
    )
    trains: str = field(
        default="lora",
        validator=in_(("lora", "all", "encoder")),
        metadata=doc("lora: adapters + encoder; all: a small DiT from scratch too; encoder alone"),
    )
    adapter: LoRA = field(
        default=LoRA(), validator=instance_of(LoRA), metadata=doc("the adapters of `trains: lora`")
    )
    optimizer: str = field(
        default="adamw",
        validator=in_(("adamw", "muon")),
        metadata=doc("adamw, or muon for the matrices of the blocks and adamw for the rest"),
    )
    rate: float = field(
        default=1e-4, validator=gt(0.0), metadata=doc("learning rate after the warm-up, > 0")
    )
    warmup: int = field(default=100, validator=ge(0), metadata=doc("steps of linear warm-up, ≥ 0"))
    decay: float = field(
        default=0.0,
        validator=unit,
        metadata=doc("last share of the steps over which the rate falls to zero, 0 to 1"),
    )
    weight_decay: float = field(
        default=0.01, validator=ge(0.0), metadata=doc("AdamW weight decay of matrices, ≥ 0")
    )
    betas: tuple[float, float] = field(
        default=(0.9, 0.99),
        validator=each(between(0.0, 0.99999)),
        metadata=doc("AdamW betas, 0 to 0.99999"),
    )
    clip: float = field(
        default=1.0, validator=gt(0.0), metadata=doc("largest norm of the gradient, > 0")
    )
    memory_dropout: float = field(
        default=0.1, validator=unit, metadata=doc("chance that a batch trains without memory")
    )
    text_dropout: float = field(
        default=0.1, validator=unit, metadata=doc("chance that a sample trains without its caption")
    )
    mean: float = field(
        default=0.0,
        validator=between(-10, 10),
        metadata=doc("mean of the logit-normal of t, −10 to 10"),
    )
    std: float = field(
        default=1.0, validator=between(0.01, 10), metadata=doc("its standard deviation")
    )
    pure: float = field(
        default=0.0,
        validator=unit,
        metadata=doc("share of samples at t = 1, pure noise, which one-step retrieval starts from"),
    )
    weigh: float = field(
        default=0.0,
        validator=between(0, 2),
        metadata=doc("exponent of a channel's reach into pixels in the loss: 0 Eq. 3, 2 as pixels"),
    )
    precision: str = field(
        default="auto",
        validator=in_(("auto", "fp32", "bf16")),
        metadata=doc("fp32, bf16 (autocast) or auto: bf16 on a GPU, fp32 on a CPU"),
    )
    checkpointing: bool = field(
        default=False, validator=instance_of(bool), metadata=doc("gradient checkpointing in G")
    )
    seed: int = field(
        default=0, validator=between(0, 2**62), metadata=doc("seed of everything, 0 to 2^62")
    )
    save_every: int = field(
        default=500, validator=ge(1), metadata=doc("steps between checkpoints, ≥ 1")
    )
    keep: int = field(
        default=2, validator=ge(1), metadata=doc("checkpoints kept, the newest ones, ≥ 1")
    )
    log_every: int = field(default=20, validator=ge(1), metadata=doc("steps between logs, ≥ 1"))
    gain_every: int = field(
        default=200,
        validator=ge(1),
        metadata=doc("steps between measuring memory_gain and drawing retrieved frames, ≥ 1"),
    )


@frozen(kw_only=True)
class MeasureSpec:
    """What `measure` looks at."""

    seconds: float = field(
        default=10.0, validator=gt(0.0), metadata=doc("length of the history, seconds, > 0")
    )
    seed: int = field(
        default=0, validator=between(0, 2**62), metadata=doc("seed of noise and Ω, 0 to 2^62")
    )
    draws: int = field(
        default=8,
        validator=ge(1),
        metadata=doc("noise draws a clip for memory_gain, ≥ 1: more narrows nothing but its noise"),
    )
