"""What a spec is: a frozen, keyword-only attrs value whose every field has a text and a validator.

    @frozen(kw_only=True)
    class Blur(CompressorSpec):
        radius: int = field(default=2, validator=ge(1), metadata=doc("in latent cells, >= 1"))

A spec is plain data: it can be compared, hashed, evolved with `attrs.evolve` and written as JSON
(`core.config`). It never imports torch, so that listing plugins stays light.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from attrs import Attribute, field, frozen
from attrs.validators import ge, gt, in_, instance_of, le, lt

from ..values.grid import Geometry, Rate, shared_period

__all__ = [
    "BackboneSpec", "CodecSpec", "CompressorSpec", "MaskerSpec", "MetricSpec", "PluginSpec",
    "RetrieverSpec", "TextEncoderSpec", "between", "doc", "each", "ge", "gt", "in_", "instance_of",
    "le", "lt", "named", "unit",
]  # fmt: skip

Validator = Callable[[Any, "Attribute[Any]", Any], Any]


@frozen(kw_only=True)
class RangeCheck:
    """A validator of our own, and what it allows in words, as `range_of` gives it.

    Attributes:
        range: such as `0 to 1`.
        check: raises ValueError.
    """

    range: str
    check: Validator

    def __call__(self, instance: Any, attribute: Attribute[Any], value: Any) -> Any:
        """Raise ValueError if the value is out of range."""
        return self.check(instance, attribute, value)


_RANGES = re.compile(r"x ([<>]=?) ([^\s>]+)>|options [(\[]([^)\]]*)[)\]]|range='([^']*)'")
_SIGNS = {">=": "≥", "<=": "≤", ">": ">", "<": "<"}


def range_of(validator: Any) -> str:
    """Return what a validator allows in words, such as `≥ 1` or `zeros, mean`; "" where unknown.

    Read from how attrs' validators print themselves, alone, under `optional` or several together.
    """
    texts = []
    for sign, bound, options, text in _RANGES.findall(repr(validator)):
        members = ", ".join(option.strip(" '\"") for option in options.rstrip(",").split(","))
        texts.append(text or members or f"{_SIGNS[sign]} {bound}")
    return ", ".join(texts)


def doc(text: str, *, recipe: str = "") -> dict[str, str]:
    """Return the `metadata` of a field: its meaning, unit and range, shown by `longtake show`.

    Args:
        text: what is shown.
        recipe: the key of a backbone's recipe that the field follows, such as `encoder.heads`;
            empty: the field is the same on every backbone.
    """
    return {"doc": text, "recipe": recipe} if recipe else {"doc": text}


def between(low: float, high: float) -> Validator:
    """Return a validator that holds a number to [low, high]."""

    def check(instance: Any, attribute: Attribute[Any], value: float) -> None:
        if not low <= value <= high:
            raise ValueError(f"must be between {low:g} and {high:g}, not {value:g}")

    return RangeCheck(range=f"{low:g} to {high:g}", check=check)


unit = between(0.0, 1.0)


def each(inner: Validator, *, at_least: int = 0) -> Validator:
    """Return a validator that holds every member of a tuple to `inner`, and its length."""

    def check(instance: Any, attribute: Attribute[Any], value: tuple[Any, ...]) -> None:
        if len(value) < at_least:
            raise ValueError(f"needs at least {at_least}, has {len(value)}")
        for member in value:
            inner(instance, attribute, member)

    parts = [f"each {range_of(inner)}"] if range_of(inner) else []
    parts += [f"at least {at_least}"] if at_least else []
    return RangeCheck(range=", ".join(parts), check=check) if parts else check


def named(what: str) -> Validator:
    """Return a validator of a text that names something, such as weights, or is None."""

    def check(instance: Any, attribute: Attribute[Any], value: str | None) -> None:
        if value is not None and not value:
            raise ValueError(f"must name {what}, or be null")

    return check


@frozen(kw_only=True)
class PluginSpec:
    """Base of every spec that names a plugin; its class is what the registry finds it by.

    Attributes:
        kind: what it is a spec of: `compressor`, `backbone`, ...
    """

    kind: ClassVar[str] = ""


@frozen(kw_only=True)
class CompressorSpec(PluginSpec):
    """Base of the specs of compressors."""

    kind: ClassVar[str] = "compressor"


@frozen(kw_only=True)
class CodecSpec(PluginSpec):
    """Base of the specs of video codecs (VAEs)."""

    kind: ClassVar[str] = "codec"


@frozen(kw_only=True)
class TextEncoderSpec(PluginSpec):
    """Base of the specs of text encoders."""

    kind: ClassVar[str] = "text_encoder"


@frozen(kw_only=True)
class MaskerSpec(PluginSpec):
    """Base of the specs of maskers."""

    kind: ClassVar[str] = "masker"


@frozen(kw_only=True)
class RetrieverSpec(PluginSpec):
    """Base of the specs of retrievers."""

    kind: ClassVar[str] = "retriever"


@frozen(kw_only=True)
class MetricSpec(PluginSpec):
    """Base of the specs of metrics."""

    kind: ClassVar[str] = "metric"


@frozen(kw_only=True)
class BackboneSpec(PluginSpec):
    """Base of the specs of backbones; each says its codec, text encoder, geometry and shift.

    Attributes:
        recipe: what experiments on this backbone take where they set nothing else, plain values by
            key: `backbone.…`, `cache.…`, `train.…`, `measure.…` and `generate.…` are paths of an
            experiment; `encoder.widths`, `encoder.heads`, `encoder.head_width`, `encoder.ffn`,
            `masker.counts`, `masker.clean` and `metric.scales` are read by whatever plugin has
            such a field (`doc(..., recipe="encoder.heads")`); `retrievers` lists plugins with
            their fields, a `rate` that is left out being the memory's; `measure.targets` are more
            of them. A key that is missing stands for the default of the field.
        rate_weights: weights that began for memories of one rate, by it, such as `4x4x2`: shipped
            names, folders or hub names, which are the recipe's `backbone.weights` there. A memory
            of several rates has those of its first; one of another rate, or of none, those of the
            recipe. Where these began for a rate that is not all of the memory's, `show` and
            training say so. A subclass with a recipe of its own names its own.
    """

    kind: ClassVar[str] = "backbone"
    recipe: ClassVar[Mapping[str, Any]] = {}
    rate_weights: ClassVar[Mapping[str, str]] = {}

    @property
    def geometry(self) -> Geometry:
        """The shapes that a compressor may know of the backbone."""
        raise NotImplementedError

    @property
    def codec(self) -> CodecSpec:
        """The video codec whose latents the backbone reads."""
        raise NotImplementedError

    @property
    def text_encoder(self) -> TextEncoderSpec:
        """The text encoder whose embeddings the backbone reads."""
        raise NotImplementedError

    @property
    def shift(self) -> float:
        """The timestep shift of the backbone's flow (SD3): t → s·t / (1 + (s − 1)·t)."""
        raise NotImplementedError

    def check_rates(self, rates: Iterable[Rate]) -> None:
        """Refuse rates of compressors whose tokens this backbone cannot take; here it takes all.

        Raises:
            ValueError: (in subclasses) a rate cannot be taken; the message names it.
        """

    def check_reading(self, trained: BackboneSpec) -> None:
        """Refuse to read a memory otherwise than it was trained; here nothing is refused.

        Args:
            trained: the backbone as it was trained.

        Raises:
            ValueError: (in subclasses) a field says otherwise; the message names it.
        """

    def check_start(self, before: BackboneSpec) -> None:
        """Refuse to go on from what an earlier stage trained; here nothing is refused.

        Args:
            before: the backbone of that stage.

        Raises:
            ValueError: (in subclasses) a field must be the same in all stages; the message names
                it.
        """

    def memory_block(self, rates: Iterable[Rate]) -> int:
        """Return the latents of a block by which memory of these rates can be dropped.

        Here it is the least that holds whole tokens of all of them.
        """
        return shared_period(tuple(rates))


@frozen(kw_only=True)
class LoRA:
    """Low-rank adapters that a stage trains on a frozen backbone (the paper: rank 128 always)."""

    rank: int = field(default=128, validator=ge(1), metadata=doc("rank of every adapter, ≥ 1"))
    alpha: float = field(
        default=128.0, validator=gt(0.0), metadata=doc("scale of the adapters is alpha / rank")
    )
    targets: tuple[str, ...] = field(
        default=("attention", "feed-forward"),
        validator=each(in_(("attention", "cross-attention", "feed-forward")), at_least=1),
        metadata=doc("which linears: attention (self), cross-attention, feed-forward"),
    )
    dtype: str = field(
        default="float32",
        validator=in_(("float32", "bfloat16")),
        metadata=doc(
            "number type of the adapters and of AdamW's moments: float32, or bfloat16, which is "
            "half the memory and rounds small steps away"
        ),
    )
    seed: int = field(
        default=0,
        validator=between(0, 2**62),
        metadata=doc("seed of the A matrices, 0 to 2^62; B is zero"),
    )
