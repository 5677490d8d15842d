"""Specs of the built-in backbones, codecs and text encoders; light: no torch, no diffusers."""

from __future__ import annotations

from attrs import field, frozen

from ..core.grid import Geometry, Size3
from ..core.spec import (
    BackboneSpec,
    CodecSpec,
    TextEncoderSpec,
    doc,
    ge,
    gt,
    in_,
    instance_of,
)


@frozen(kw_only=True)
class Dct(CodecSpec):
    """A weightless causal codec: an orthonormal 3D DCT over 4×8×8 blocks, strongest kept."""

    channels: int = field(
        default=48,
        validator=in_((16, 48)),
        metadata=doc("coefficients kept of each block: 16 or 48"),
    )


@frozen(kw_only=True)
class Bytes(TextEncoderSpec):
    """A weightless text encoder: fixed vectors of bytes and places."""

    width: int = field(default=64, validator=ge(2), metadata=doc("width E of an embedding, ≥ 2"))
    length: int = field(
        default=64, validator=ge(1), metadata=doc("bytes that are read; the rest is cut, ≥ 1")
    )


@frozen(kw_only=True)
class WanSpec(BackboneSpec):
    """What every Wan backbone shares."""

    attention: str = field(
        default="full",
        validator=in_(("full", "isolated")),
        metadata=doc(
            "full: memory is a token prefix; isolated: memory sees memory only, cacheable"
        ),
    )
    memory_time: float | None = field(
        default=None,
        metadata=doc("time of memory tokens in (0, 1] or 0; null shares the targets' (full only)"),
    )
    weights: str | None = field(
        default=None,
        metadata=doc("diffusers checkpoint: a folder, or weights that ship; null: random weights"),
    )

    @memory_time.validator
    def _in_range(self, attribute: object, value: float | None) -> None:
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"must be between 0 and 1, or null for shared, not {value:g}")

    @weights.validator
    def _is_text(self, attribute: object, value: str | None) -> None:
        if value is not None and not value:
            raise ValueError("must name a folder, or be null")

    def __attrs_post_init__(self) -> None:
        if self.attention == "isolated" and self.memory_time is None:
            raise ValueError(
                "memory_time is shared (null), but isolated memory must not see the targets' time: "
                "give a number, such as 0"
            )


@frozen(kw_only=True)
class TinyWan(WanSpec):
    """The real Wan 2.2 transformer with small numbers, for CPUs, with the DCT codec."""

    heads: int = field(default=4, validator=ge(1), metadata=doc("attention heads, ≥ 1"))
    head_width: int = field(
        default=64, metadata=doc("width of a head, even, ≥ 6; D = heads × this")
    )
    layers: int = field(default=6, validator=ge(1), metadata=doc("transformer blocks, ≥ 1"))
    ffn: int = field(default=1024, validator=ge(1), metadata=doc("width of the feed-forward, ≥ 1"))
    time: str = field(
        default="sample",
        validator=in_(("sample", "token")),
        metadata=doc("how time enters: sample ([B], Wan 2.1 and 14B) or token ([B, N], the 5B)"),
    )
    begin: str = field(
        default="local",
        validator=in_(("local", "diffusers")),
        metadata=doc("random weights: local (a copier of nearby memory, nearly) or diffusers' own"),
    )
    fps: float = field(default=8.0, validator=gt(0.0), metadata=doc("frames a second, > 0"))
    codec: Dct = field(
        default=Dct(), validator=instance_of(Dct), metadata=doc("the codec of its latents")
    )
    text_encoder: Bytes = field(
        default=Bytes(), validator=instance_of(Bytes), metadata=doc("its text encoder")
    )
    shift: float = field(
        default=3.0, validator=gt(0.0), metadata=doc("timestep shift of sampling and training, > 0")
    )

    @head_width.validator
    def _splits_over_rotary(self, attribute: object, value: int) -> None:
        if value < 6 or value % 2:
            raise ValueError(f"must be even and >= 6, not {value}")

    @property
    def geometry(self) -> Geometry:
        """The shapes that a compressor may know."""
        return Geometry(
            channels=self.codec.channels,
            vae_stride=Size3(time=4, height=8, width=8),
            patch=Size3(time=1, height=2, width=2),
            width=self.heads * self.head_width,
            blocks=self.layers,
            fps=self.fps,
        )
