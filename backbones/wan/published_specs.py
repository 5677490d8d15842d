"""Specs of the Wans whose weights people can have; light: no torch, no diffusers."""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import field, frozen

from ...core.grid import Geometry
from ...core.spec import doc, each, in_, instance_of, unit
from ..codecs.specs import WAN21, WAN22, WanVae
from ..dit.specs import dtype_field, memory_time_field, weights_field, weights_or_null
from ..texts.specs import Umt5
from .specs import WanSpec, ffn_field, fps_field, heads_field, layers_field, shift_field, time_field


@frozen(kw_only=True)
class PublishedWan(WanSpec):
    """What the published Wans share: their VAE, their text encoder, bfloat16.

    Shifts are those of the pipelines that hold the weights, unless a docstring says otherwise.
    """

    dtype: str = dtype_field("bfloat16")
    codec: WanVae = field(
        default=WAN21, validator=instance_of(WanVae), metadata=doc("the codec of its latents")
    )
    text_encoder: Umt5 = field(
        default=Umt5(), validator=instance_of(Umt5), metadata=doc("its text encoder")
    )

    @property
    def geometry(self) -> Geometry:
        """The shapes that a compressor may know."""
        return self._geometry(self.codec.channels, self.codec.stride)

    @property
    def config(self) -> dict[str, Any]:
        """Give diffusers' config of the model."""
        return self._config(self.codec.channels, self.text_encoder.width)


@frozen(kw_only=True)
class Wan21Small(PublishedWan):
    """Wan 2.1 T2V 1.3B."""

    published: ClassVar[bool] = True

    weights: str | None = weights_field("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    heads: int = heads_field(12)
    layers: int = layers_field(30)
    ffn: int = ffn_field(8960)


@frozen(kw_only=True)
class Wan21Large(PublishedWan):
    """Wan 2.1 T2V 14B."""

    published: ClassVar[bool] = True

    weights: str | None = weights_field("Wan-AI/Wan2.1-T2V-14B-Diffusers")


@frozen(kw_only=True)
class Wan22Dense5B(PublishedWan):
    """Wan 2.2 TI2V 5B: a VAE of 4×16×16, and a time of its own for every token.

    It knows clean frames beside noisy ones (image to video), so memory has time 0 by default.
    """

    published: ClassVar[bool] = True

    memory_time: float | None = memory_time_field(0.0)
    weights: str | None = weights_field("Wan-AI/Wan2.2-TI2V-5B-Diffusers")
    heads: int = heads_field(24)
    layers: int = layers_field(30)
    ffn: int = ffn_field(14336)
    time: str = time_field("token")
    fps: float = fps_field(24.0)
    shift: float = shift_field(5.0)
    codec: WanVae = field(
        default=WAN22, validator=instance_of(WanVae), metadata=doc("the codec of its latents")
    )


@frozen(kw_only=True)
class Wan22Moe14B(PublishedWan):
    """Wan 2.2 T2V A14B: an expert for high noise, one for low noise, or both with a switch.

    The paper trains the high-noise expert alone, which is the default. The shift is 12, that of
    the authors' own sampler (Wan2.2, `t2v_A14B.sample_shift`) at any size; the diffusers
    pipeline's default of 3 would leave the high-noise expert a fifth of the training times.
    """

    published: ClassVar[bool] = True

    weights: str | None = field(
        default="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        validator=weights_or_null,
        metadata=doc(
            "as everywhere; of a pipeline, high reads transformer and low transformer_2; both: a "
            "pipeline, or `high,low` with a comma; null: random weights. Only a pipeline tells "
            "2.2's experts from 2.1's model, whose shape they have"
        ),
    )
    loras: tuple[str, ...] = field(
        default=(),
        validator=each(instance_of(str)),
        metadata=doc(
            "as everywhere; `high:file` and `low:file@0.8` are for that expert alone, and are left "
            "out where it is not there"
        ),
    )
    shift: float = shift_field(12.0)
    expert: str = field(
        default="high",
        validator=in_(("high", "low", "both")),
        metadata=doc("high: the high-noise expert for all times; low: the other; both, by time"),
    )
    boundary: float = field(
        default=0.875,
        validator=unit,
        metadata=doc("both: the high-noise expert has the samples of t ≥ this, 0 to 1"),
    )
