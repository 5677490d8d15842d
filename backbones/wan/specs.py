"""Specs of Wan backbones: the tiny one, and those whose weights people can have.

Light: no torch, no diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import Attribute, field, frozen

from ...core.interfaces.spec import doc, each, in_, instance_of, unit
from ...core.values.grid import Geometry, Size3
from ..codecs.specs import TINY_AE, WAN21, WAN22, BlockCodecSpec, WanVae
from ..specs import (
    TINY,
    DiTSpec,
    count_field,
    dtype_field,
    memory_time_field,
    number_field,
    weights_field,
    weights_or_null,
)
from ..texts.specs import Bytes, Umt5

PATCH = Size3(time=1, height=2, width=2)
HEAD_WIDTH = "width of a head, even, ≥ 6; D = heads × this"


def _check_head_width(instance: Any, attribute: Attribute[int], value: int) -> None:
    if value < 6 or value % 2:
        raise ValueError(f"must be even and >= 6, not {value}")


def head_width_field(default: int) -> Any:
    """Return the field `head_width` with a default."""
    return field(default=default, validator=_check_head_width, metadata=doc(HEAD_WIDTH))


def time_field(default: str) -> Any:
    """Return the field `time` with a default."""
    text = "how time enters: sample ([B], Wan 2.1 and 14B) or token ([B, N], the 5B)"
    return field(default=default, validator=in_(("sample", "token")), metadata=doc(text))


def heads_field(default: int) -> Any:
    """Return the field `heads` with a default."""
    return count_field(default, "attention heads")


def layers_field(default: int) -> Any:
    """Return the field `layers` with a default."""
    return count_field(default, "transformer blocks")


def ffn_field(default: int) -> Any:
    """Return the field `ffn` with a default."""
    return count_field(default, "width of the feed-forward")


def fps_field(default: float) -> Any:
    """Return the field `fps` with a default."""
    return number_field(default, "frames a second")


def shift_field(default: float) -> Any:
    """Return the field `shift` with a default."""
    return number_field(default, "timestep shift of sampling and training")


@frozen(kw_only=True)
class WanSpec(DiTSpec):
    """The numbers of a Wan transformer, those of the 14B by default; a subclass has the codecs."""

    heads: int = heads_field(40)
    head_width: int = head_width_field(128)
    layers: int = layers_field(40)
    ffn: int = ffn_field(13824)
    time: str = time_field("sample")
    fps: float = fps_field(16.0)
    shift: float = shift_field(3.0)
    codec: BlockCodecSpec | WanVae = field(metadata=doc("the codec of its latents"))
    text_encoder: Bytes | Umt5 = field(metadata=doc("its text encoder"))

    @property
    def geometry(self) -> Geometry:
        """The shapes that a compressor may know."""
        return Geometry(
            channels=self.codec.channels,
            vae_stride=self.codec.stride,
            patch=PATCH,
            width=self.heads * self.head_width,
            blocks=self.layers,
            fps=self.fps,
        )

    @property
    def config(self) -> dict[str, Any]:
        """Diffusers' config of the model."""
        return {
            "patch_size": (PATCH.time, PATCH.height, PATCH.width),
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_width,
            "in_channels": self.codec.channels,
            "out_channels": self.codec.channels,
            "text_dim": self.text_encoder.width,
            "freq_dim": 256,
            "ffn_dim": self.ffn,
            "num_layers": self.layers,
            "cross_attn_norm": True,
            "qk_norm": "rms_norm_across_heads",
            "eps": 1e-6,
            "image_dim": None,
            "added_kv_proj_dim": None,
        }


@frozen(kw_only=True)
class TinyWan(WanSpec):
    """The real Wan 2.2 transformer with small numbers, for CPUs, with a learned codec.

    The recipe's is the one whose weights ship.
    """

    recipe: ClassVar[Mapping[str, Any]] = {**TINY, "backbone.weights": "tiny-wan-2x2x2"}
    rate_weights: ClassVar[Mapping[str, str]] = {
        "2x2x2": "tiny-wan-2x2x2",
        "4x4x2": "tiny-wan-4x4x2",
    }

    heads: int = heads_field(8)
    head_width: int = head_width_field(48)
    layers: int = layers_field(4)
    ffn: int = ffn_field(1024)
    time: str = time_field("sample")
    memory_time: float | None = memory_time_field(0.0)
    begin: str = field(
        default="local",
        validator=in_(("local", "diffusers")),
        metadata=doc("random weights: local (a copier of nearby memory, nearly) or diffusers' own"),
    )
    fps: float = fps_field(8.0)
    codec: BlockCodecSpec = field(
        default=TINY_AE,
        validator=instance_of(BlockCodecSpec),
        metadata=doc("the codec of its latents"),
    )
    text_encoder: Bytes = field(
        default=Bytes(), validator=instance_of(Bytes), metadata=doc("its text encoder")
    )
    shift: float = shift_field(3.0)


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
