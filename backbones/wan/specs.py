"""Specs of Wan backbones; light: no torch, no diffusers."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, field, frozen

from ...core.grid import Geometry, Size3
from ...core.spec import doc, in_, instance_of
from ..codecs.specs import Dct
from ..dit.specs import DiTSpec, count_field, number_field
from ..texts.specs import Bytes

PATCH = Size3(time=1, height=2, width=2)
HEAD_WIDTH = "width of a head, even, ≥ 6; D = heads × this"


def _splits_over_rotary(instance: Any, attribute: Attribute[int], value: int) -> None:
    if value < 6 or value % 2:
        raise ValueError(f"must be even and >= 6, not {value}")


def head_width_field(default: int) -> Any:
    """Give the field `head_width` with a default."""
    return field(default=default, validator=_splits_over_rotary, metadata=doc(HEAD_WIDTH))


def time_field(default: str) -> Any:
    """Give the field `time` with a default."""
    text = "how time enters: sample ([B], Wan 2.1 and 14B) or token ([B, N], the 5B)"
    return field(default=default, validator=in_(("sample", "token")), metadata=doc(text))


def heads_field(default: int) -> Any:
    """Give the field `heads` with a default."""
    return count_field(default, "attention heads")


def layers_field(default: int) -> Any:
    """Give the field `layers` with a default."""
    return count_field(default, "transformer blocks")


def ffn_field(default: int) -> Any:
    """Give the field `ffn` with a default."""
    return count_field(default, "width of the feed-forward")


def fps_field(default: float) -> Any:
    """Give the field `fps` with a default."""
    return number_field(default, "frames a second")


def shift_field(default: float) -> Any:
    """Give the field `shift` with a default."""
    return number_field(default, "timestep shift of sampling and training")


@frozen(kw_only=True)
class WanSpec(DiTSpec):
    """The numbers of a Wan transformer; those of the 14B by default."""

    heads: int = heads_field(40)
    head_width: int = head_width_field(128)
    layers: int = layers_field(40)
    ffn: int = ffn_field(13824)
    time: str = time_field("sample")
    fps: float = fps_field(16.0)
    shift: float = shift_field(3.0)

    def _geometry(self, channels: int, stride: Size3) -> Geometry:
        return Geometry(
            channels=channels,
            vae_stride=stride,
            patch=PATCH,
            width=self.heads * self.head_width,
            blocks=self.layers,
            fps=self.fps,
        )

    def _config(self, channels: int, text_width: int) -> dict[str, Any]:
        return {
            "patch_size": (PATCH.time, PATCH.height, PATCH.width),
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_width,
            "in_channels": channels,
            "out_channels": channels,
            "text_dim": text_width,
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
    """The real Wan 2.2 transformer with small numbers, for CPUs, with the DCT codec."""

    heads: int = heads_field(4)
    head_width: int = head_width_field(64)
    layers: int = layers_field(6)
    ffn: int = ffn_field(1024)
    time: str = time_field("sample")
    begin: str = field(
        default="local",
        validator=in_(("local", "diffusers")),
        metadata=doc("random weights: local (a copier of nearby memory, nearly) or diffusers' own"),
    )
    fps: float = fps_field(8.0)
    codec: Dct = field(
        default=Dct(), validator=instance_of(Dct), metadata=doc("the codec of its latents")
    )
    text_encoder: Bytes = field(
        default=Bytes(), validator=instance_of(Bytes), metadata=doc("its text encoder")
    )
    shift: float = shift_field(3.0)

    @property
    def geometry(self) -> Geometry:
        """The shapes that a compressor may know."""
        return self._geometry(self.codec.channels, self.codec.stride)

    @property
    def config(self) -> dict[str, Any]:
        """Give diffusers' config of the model."""
        return self._config(self.codec.channels, self.text_encoder.width)
