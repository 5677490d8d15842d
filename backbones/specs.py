"""What the specs of all diffusion transformers share; light: no torch, no diffusers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from attrs import Attribute, field, frozen

from ..core.interfaces.spec import BackboneSpec, doc, each, ge, gt, in_, instance_of
from ..core.values.grid import Rate

DTYPES = ("float32", "float16", "bfloat16")

# Stage I on a published backbone. From the paper (method.md §3): LoRA of rank 128, frames of
# 480×832, 20 s of history, no history left clean. Its batch is ours to choose: 32 over all
# processes is what the paper has on eight GPUs with 4 or 5 latent frames as targets (Ω is up to
# four here). Not in the paper: AdamW at 1e-4, which LoRAs of video DiTs are trained with, after
# 500 steps of warm-up; alpha = rank; 20,000 steps. Stores for training hold no frames (20 s of
# them weigh 0.5 GB).
PAPER: Mapping[str, Any] = {
    "cache.area": 480 * 832,
    "cache.min_seconds": 20.0,
    "cache.pixels": False,
    "encoder.widths": (64, 128, 256, 512),
    "encoder.heads": 8,
    "encoder.head_width": 64,
    "encoder.ffn": 2048,
    "masker.counts": (1, 2, 4),
    "masker.clean": 0.0,
    "metric.scales": 3,
    "retrievers": (
        {"type": "flow", "steps": 20},
        {"type": "flow", "steps": 1},
        {"type": "upsample"},
    ),
    "train.steps": 20_000,
    "train.batch": 32,
    "train.seconds": (20.0, 20.0),
    "train.adapter.rank": 128,
    "train.adapter.alpha": 128.0,
    "train.optimizer": "adamw",
    "train.rate": 1e-4,
    "train.warmup": 500,
    "train.decay": 0.0,
    "train.betas": (0.9, 0.99),
    "train.memory_dropout": 0.0,
    "train.pure": 0.0,
    "train.weigh": 0.0,
    "train.checkpointing": True,
    "train.save_every": 500,
    "train.gain_every": 500,
    "measure.seconds": 20.0,
    "measure.long_seconds": 0.0,
    # Stage II. The paper cuts clips at random, and says neither steps nor lengths (its batch of 32
    # has targets of 4 or 5 latents): targets of up to 5 s are what these models make at once.
    # Cuts are looked for, since no target should have one in it.
    "finetune.cache.cuts": True,
    "finetune.past": (2.0, 20.0),
    "finetune.target": (2.0, 5.0),
    "finetune.train.steps": 10_000,
    "finetune.train.memory_dropout": 0.1,
}

# Stage I on a DiT of 8 M parameters, for two CPU cores. LoRA and the encoder's last width are so
# large a share of D as they can be with files of a few megabytes.
TINY: Mapping[str, Any] = {
    "cache.area": 128 * 224,
    "cache.min_seconds": 4.0,
    "cache.pixels": True,
    "encoder.widths": (48, 96, 192, 320),
    "encoder.heads": 5,
    "encoder.head_width": 64,
    "encoder.rounding": "whole",
    "encoder.ffn": 640,
    "masker.counts": (4,),
    "masker.clean": 0.75,
    "metric.scales": 4,
    "retrievers": (
        {"type": "flow", "steps": 1},
        {"type": "flow", "steps": 20},
        {"type": "upsample"},
        {"type": "thumbnail"},
        {"type": "mean-frame"},
    ),
    "train.steps": 1000,
    "train.batch": 4,
    "train.seconds": (4.0, 20.0),
    "train.adapter.rank": 64,
    "train.adapter.alpha": 192.0,
    "train.optimizer": "adamw",
    "train.rate": 3e-5,
    "train.warmup": 30,
    "train.decay": 0.5,
    "train.betas": (0.9, 0.99),
    "train.memory_dropout": 0.05,
    "train.pure": 0.5,
    "train.weigh": 2.0,
    "train.checkpointing": False,
    "train.save_every": 100,
    "train.gain_every": 200,
    "generate.sampler.scheduler": "euler",
    "generate.sampler.steps": 20,
    "generate.sampler.guidance": 1.0,
    "generate.segment_seconds": 5.0,
    "measure.seconds": 10.0,
    "measure.long_seconds": 20.0,
    "measure.targets": ({"metric": "psnr", "low": 1.0, "over": "mean-frame"},),
    "finetune.cache.cuts": True,
    "finetune.past": (2.0, 10.0),
    "finetune.target": (1.0, 5.0),
    "finetune.train.steps": 100,
    # The head's factor stays as it begins: later times of the flow tell the same miss of what
    # memory expects next, up to fifty times as loud, and drown the others.
    "finetune.train.rate": 1e-5,
    "finetune.train.warmup": 5,
    "finetune.train.memory_dropout": 0.1,
    "finetune.train.pure": 1.0,
}


def _time_or_null(instance: Any, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and not 0.0 <= value <= 1.0:
        raise ValueError(f"must be between 0 and 1, or null for shared, not {value:g}")


def weights_or_null(instance: Any, attribute: Attribute[Any], value: str | None) -> None:
    """Raise ValueError if the value is neither null nor a text that names weights."""
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError("must name weights, or be null")


def memory_time_field(default: float | None) -> Any:
    """Return the field `memory_time` with another default."""
    text = "time of memory tokens in (0, 1] or 0; null shares the targets' (full only)"
    return field(default=default, validator=_time_or_null, metadata=doc(text))


def weights_field(default: str | None) -> Any:
    """Return the field `weights` with another default."""
    text = (
        "a diffusers folder, hub id (org/name, or org/name/file), single .safetensors or .gguf "
        "file, or weights that ship; null: random weights"
    )
    return field(default=default, validator=weights_or_null, metadata=doc(text))


def dtype_field(default: str) -> Any:
    """Return the field `dtype` with another default."""
    text = "number type of the frozen weights; what diffusers keeps in float32 stays so"
    return field(default=default, validator=in_(DTYPES), metadata=doc(text))


def count_field(default: int, text: str) -> Any:
    """Return a field of a whole number ≥ 1, such as a width."""
    return field(default=default, validator=ge(1), metadata=doc(f"{text}, ≥ 1"))


def number_field(default: float, text: str) -> Any:
    """Return a field of a number > 0, such as a timestep shift."""
    return field(default=default, validator=gt(0.0), metadata=doc(f"{text}, > 0"))


def in_words(value: Any) -> str:
    """Return a plain value of a field as JSON, and so the user, has it."""
    return "null" if value is None else str(value)


@frozen(kw_only=True)
class DiTSpec(BackboneSpec):
    """How memory enters a diffusion transformer, and where its weights come from.

    A subclass has the model's numbers as fields, says in `config` what diffusers calls them, and
    is `published` where its defaults are those of weights that people can have. The fields that
    say how memory is read are named in `reading`.
    """

    recipe: ClassVar[Mapping[str, Any]] = PAPER
    published: ClassVar[bool] = False
    reading: ClassVar[tuple[str, ...]] = ("attention", "memory_time", "cache_block", "rotary")

    attention: str = field(
        default="full",
        validator=in_(("full", "isolated", "isolated-causal")),
        metadata=doc(
            "full: memory is a token prefix; isolated: memory sees memory only, cacheable; "
            "isolated-causal: earlier memory only, so that the cache grows with a take"
        ),
    )
    memory_time: float | None = memory_time_field(None)
    cache_block: int = field(
        default=8,
        validator=ge(1),
        metadata=doc("isolated-causal: latents of a block, a multiple of all time rates, ≥ 1"),
    )
    rotary: str = field(
        default="centre",
        validator=in_(("centre", "averaged")),
        metadata=doc(
            "place of a memory token: its centre, or FramePack's mean of the rotary "
            "embedding over all cells that it covers"
        ),
    )
    weights: str | None = weights_field(None)
    dtype: str = dtype_field("float32")
    quantize: str = field(
        default="none",
        validator=in_(("none", "nf4", "int8")),
        metadata=doc("none; nf4 or int8: linears in 4 or 8 bits (needs bitsandbytes and a GPU)"),
    )
    loras: tuple[str, ...] = field(
        default=(),
        validator=each(instance_of(str)),
        metadata=doc("more LoRA files that stay frozen beside ours, `file` or `file@0.8` (scale)"),
    )

    def __attrs_post_init__(self) -> None:
        if self.attention != "full" and self.memory_time is None:
            raise ValueError(
                "memory_time is shared (null), but isolated memory must not see the targets' time: "
                "give a number, such as 0"
            )
        if self.quantize != "none" and self.weights is None:
            raise ValueError(f"quantize is {self.quantize}, but there are no weights to quantise")

    def check_rates(self, rates: Iterable[Rate]) -> None:
        """Raise ValueError for rates whose tokens lie in two blocks of `cache_block`."""
        if self.attention != "isolated-causal":
            return
        for rate in rates:
            if self.cache_block % rate.time:
                raise ValueError(
                    f"backbone.cache_block {self.cache_block} is no multiple of the time rate of "
                    f"{rate}, as isolated-causal memory needs"
                )

    def check_reading(self, trained: BackboneSpec) -> None:
        """Raise ValueError where a field of `reading` is not as it was trained."""
        for name in self.reading:
            was, now = getattr(trained, name, None), getattr(self, name)
            if now == was or name == "cache_block" and self.attention != "isolated-causal":
                continue
            hint = ""
            if name == "attention" and was == "full":
                hint = ". full memory sees the targets at every step, so that a cache of keys and "
                hint += "values would only come near it: train with isolated to have one"
            raise ValueError(
                f"backbone.{name} is {in_words(now)}, but the memory was trained with "
                f"{in_words(was)}, and is read as it was trained{hint}"
            )

    def memory_block(self, rates: Iterable[Rate]) -> int:
        """Return the latents of a block by which memory can be dropped: of a cache that grows."""
        if self.attention == "isolated-causal":
            return self.cache_block
        return super().memory_block(rates)

    @property
    def config(self) -> dict[str, Any]:
        """Diffusers' config of the model, without `_class_name`."""
        raise NotImplementedError
