"""Specs of HunyuanVideo and its kin; light: no torch, no diffusers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from attrs import Attribute, field, frozen

from ...core.interfaces.spec import BackboneSpec, doc, in_, instance_of
from ...core.values.grid import Geometry, Size3
from ..codecs.specs import TINY_AE, BlockCodecSpec, HunyuanVae
from ..specs import PAPER, TINY, DiTSpec, count_field, dtype_field, number_field, weights_field
from ..texts.specs import Bytes, LlamaClip

HUB = "hunyuanvideo-community/HunyuanVideo"
FRAMEPACK = "lllyasviel/FramePackI2V_HY"


def _positive_or_null(instance: Any, attribute: Attribute[Any], value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"must be > 0, or null for none, not {value:g}")


def _guidance_field(default: float) -> Any:
    text = "guidance scale that the model embeds, > 0; null: it was not distilled"
    return field(default=default, validator=_positive_or_null, metadata=doc(text))


def _check_rope(instance: Any, attribute: Attribute[Any], value: tuple[int, ...]) -> None:
    width = instance.head_width
    if len(value) != 3 or any(x < 2 or x % 2 for x in value) or sum(value) != width:
        raise ValueError(f"must be three even numbers that add up to head_width {width}")


def _rope_field(default: tuple[int, ...]) -> Any:
    text = "channels of a head that rotate with time, row and column; even, sum of a head"
    return field(default=default, validator=_check_rope, metadata=doc(text))


@frozen(kw_only=True)
class HunyuanSpec(DiTSpec):
    """The numbers of HunyuanVideo's transformer, those of the published weights by default.

    A subclass has the codecs.
    """

    reading: ClassVar[tuple[str, ...]] = (*DiTSpec.reading, "places")

    heads: int = count_field(24, "attention heads")
    head_width: int = count_field(128, "width of a head, the sum of `rope`; D = heads × this")
    layers: int = count_field(20, "blocks of two streams, latents beside text")
    single_layers: int = count_field(40, "blocks of one stream, behind those of two")
    refiner_layers: int = count_field(2, "blocks that refine the text")
    mlp_ratio: float = number_field(4.0, "width of the feed-forward over D")
    patch: int = count_field(2, "rows and columns of latent cells to a token")
    rope: tuple[int, ...] = _rope_field((16, 56, 56))
    theta: float = number_field(256.0, "base of the rotary embedding's frequencies")
    guidance: float | None = _guidance_field(6.0)
    places: str = field(
        default="absolute",
        validator=in_(("absolute", "relative")),
        metadata=doc(
            "where time begins: absolute, with the video, as frames of one longer video are; "
            "relative, with the first target, as the model was trained: text has no place, so "
            "absolute ones change its weight as a take grows. One value for both stages and takes"
        ),
    )
    image_condition: str = field(
        default="none",
        validator=in_(("none", "token_replace")),
        metadata=doc(
            "none, or token_replace: image-to-video weights, whose clean first frame is a memory "
            "of one latent (give it memory_time 0)"
        ),
    )
    fps: float = number_field(24.0, "frames a second")
    shift: float = number_field(7.0, "timestep shift of sampling and training")
    codec: BlockCodecSpec | HunyuanVae = field(metadata=doc("the codec of its latents"))
    text_encoder: Bytes | LlamaClip = field(metadata=doc("its text encoders"))

    def check_start(self, before: BackboneSpec) -> None:
        """Raise ValueError where places are other ones than in an earlier stage."""
        was = getattr(before, "places", self.places)
        if was != self.places:
            raise ValueError(
                f"backbone.places is {self.places}, but {was} in the stage before: it is one value "
                "for both stages and takes"
            )

    @property
    def geometry(self) -> Geometry:
        """The shapes that a compressor may know."""
        return Geometry(
            channels=self.codec.channels,
            vae_stride=self.codec.stride,
            patch=Size3(time=1, height=self.patch, width=self.patch),
            width=self.heads * self.head_width,
            blocks=self.layers + self.single_layers,
            fps=self.fps,
        )

    @property
    def config(self) -> dict[str, Any]:
        """Diffusers' config of the model."""
        replaces = self.image_condition == "token_replace"
        return {
            "in_channels": self.codec.channels,
            "out_channels": self.codec.channels,
            "num_attention_heads": self.heads,
            "attention_head_dim": self.head_width,
            "num_layers": self.layers,
            "num_single_layers": self.single_layers,
            "num_refiner_layers": self.refiner_layers,
            "mlp_ratio": self.mlp_ratio,
            "patch_size": self.patch,
            "patch_size_t": 1,
            "qk_norm": "rms_norm",
            "guidance_embeds": self.guidance is not None,
            "text_embed_dim": self.text_encoder.width,
            "pooled_projection_dim": self.text_encoder.pooled,
            "rope_theta": self.theta,
            "rope_axes_dim": self.rope,
            "image_condition_type": "token_replace" if replaces else None,
        }


@frozen(kw_only=True)
class Hunyuan(HunyuanSpec):
    """HunyuanVideo 12.8B: text to video, distilled on guidance; or its image to video weights."""

    published: ClassVar[bool] = True
    # Its codec is not causal: the end of a past is encoded anew from frames.
    recipe: ClassVar[Mapping[str, Any]] = {
        **PAPER,
        "finetune.cache.pixels": True,
        "generate.sampler.scheduler": "euler",
        "generate.sampler.guidance": 1.0,
    }

    weights: str | None = weights_field(HUB)
    dtype: str = dtype_field("bfloat16")
    codec: HunyuanVae = field(
        default=HunyuanVae(),
        validator=instance_of(HunyuanVae),
        metadata=doc("the codec of its latents"),
    )
    text_encoder: LlamaClip = field(
        default=LlamaClip(), validator=instance_of(LlamaClip), metadata=doc("its text encoders")
    )


@frozen(kw_only=True)
class FramePack(Hunyuan):
    """FramePack's HunyuanVideo 12.8B: image to video, next segments from a packed past.

    Its memory is what `patchifier` makes with these weights (schedule [[1,1],[2,2],[4,16]]).
    Guidance, frame rate and shift (its largest, from 8,800 target tokens on) are those of
    FramePack's own program.
    """

    published: ClassVar[bool] = False  # in tables of shapes: they are those of `hunyuan`

    weights: str | None = weights_field(FRAMEPACK)
    rotary: str = field(
        default="averaged",
        validator=in_(("centre", "averaged")),
        metadata=doc(
            "place of a memory token: its centre, or the mean of the rotary embedding over all "
            "cells that it covers, where a frame ended the last one counted again (FramePack's)"
        ),
    )
    guidance: float | None = _guidance_field(10.0)
    fps: float = number_field(30.0, "frames a second")
    image_width: int = count_field(1152, "width of an embedding of the first frame (SigLIP's)")

    @property
    def config(self) -> dict[str, Any]:
        """Diffusers' config of the model."""
        more = {"has_image_proj": True, "has_clean_x_embedder": True}
        return super().config | more | {"image_proj_dim": self.image_width}


def _check_pooled(instance: object, attribute: object, value: Bytes) -> None:
    if not isinstance(value, Bytes) or value.pooled < 1:
        raise ValueError("must be `bytes` with a pooled vector (pooled ≥ 1)")


@frozen(kw_only=True)
class TinyHunyuan(HunyuanSpec):
    """The real HunyuanVideo transformer with small numbers, for CPUs, with a learned codec."""

    recipe: ClassVar[Mapping[str, Any]] = TINY

    heads: int = count_field(8, "attention heads")
    head_width: int = count_field(48, "width of a head, the sum of `rope`; D = heads × this")
    layers: int = count_field(1, "blocks of two streams, latents beside text")
    single_layers: int = count_field(3, "blocks of one stream, behind those of two")
    refiner_layers: int = count_field(1, "blocks that refine the text")
    rope: tuple[int, ...] = _rope_field((16, 16, 16))
    fps: float = number_field(8.0, "frames a second")
    shift: float = number_field(3.0, "timestep shift of sampling and training")
    codec: BlockCodecSpec = field(
        default=TINY_AE,
        validator=instance_of(BlockCodecSpec),
        metadata=doc("the codec of its latents"),
    )
    text_encoder: Bytes = field(
        default=Bytes(pooled=64), validator=_check_pooled, metadata=doc("its text encoder")
    )
