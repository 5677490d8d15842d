"""Specs of Wan backbones; light: no torch, no diffusers."""

from __future__ import annotations

from attrs import field, frozen

from ...core.grid import Geometry, Size3
from ...core.spec import doc, ge, gt, in_, instance_of
from ..codecs.specs import Dct
from ..dit.specs import DiTSpec
from ..texts.specs import Bytes


@frozen(kw_only=True)
class TinyWan(DiTSpec):
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
