"""Specs of the built-in codecs; light: no torch, no diffusers."""

from __future__ import annotations

from typing import Any

from attrs import Attribute, field, frozen
from attrs.validators import and_, optional

from ...core.interfaces.spec import CodecSpec, doc, each, ge, in_, instance_of
from ...core.values.grid import Size3
from ..specs import weights_or_null

DTYPES = ("float32", "bfloat16", "float16")
WAN21_HUB = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
WAN22_HUB = "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
HUNYUAN_HUB = "hunyuanvideo-community/HunyuanVideo"
WEIGHTS = "a hub id (org/name, of which only vae/ is taken), a diffusers pipeline or vae folder"


@frozen(kw_only=True)
class BlockCodecSpec(CodecSpec):
    """What the codecs of the tiny backbones share: a latent cell is a block of 4×8×8 pixels."""

    channels: int = field(default=16, validator=ge(1), metadata=doc("of a latent cell, ≥ 1"))

    @property
    def stride(self) -> Size3:
        """Pixels to a latent cell."""
        return Size3(time=4, height=8, width=8)


@frozen(kw_only=True)
class Dct(BlockCodecSpec):
    """A weightless causal codec: an orthonormal 3D DCT over 4×8×8 blocks, strongest kept."""

    channels: int = field(
        default=48,
        validator=in_((16, 48)),
        metadata=doc("coefficients kept of each block: 16 or 48"),
    )


def _names_weights(instance: object, attribute: Attribute[str], value: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must name weights: {WEIGHTS}")


@frozen(kw_only=True)
class TinyAutoencoder(BlockCodecSpec):
    """A small learned causal codec: blocks of 4×8×8 pixels and their neighbours in space."""

    weights: str | None = field(
        default="tiny-ae",
        validator=weights_or_null,
        metadata=doc(
            "weights that ship (tiny-ae), a folder with codec.safetensors, such a file, or a hub "
            "id; null: random weights"
        ),
    )
    width: int = field(default=128, validator=ge(1), metadata=doc("of its convolutions, ≥ 1"))
    layers: int = field(
        default=4, validator=ge(1), metadata=doc("3×3 convolutions of the decoder, ≥ 1")
    )
    decoder_width: int | None = field(
        default=None,
        validator=optional(ge(1)),
        metadata=doc("of the decoder's convolutions, ≥ 1; null: as the encoder's"),
    )


TINY_AE: BlockCodecSpec = TinyAutoencoder()


def _multiple_of_16(instance: object, attribute: Attribute[int], value: int) -> None:
    if value < 0 or value % 16:
        raise ValueError(f"must be a multiple of 16 pixels, not {value}")


def _tile(instance: object, attribute: Attribute[Any], value: int | None) -> None:
    if value is not None and (value < 16 or value % 16):
        raise ValueError(f"must be a multiple of 16 pixels, or null, not {value}")


def _four_levels(instance: object, attribute: Attribute[Any], value: tuple[int, ...]) -> None:
    if len(value) != 4:
        raise ValueError(f"has four levels, not {len(value)}")


@frozen(kw_only=True)
class VaeSpec(CodecSpec):
    """What all VAEs of diffusers share: where weights are, their type, and tiles in space."""

    weights: str = field(validator=_names_weights, metadata=doc(WEIGHTS))
    channels: int = field(default=16, validator=ge(1), metadata=doc("of a latent cell, ≥ 1"))
    blocks: int = field(
        default=2, validator=ge(1), metadata=doc("residual blocks of a level of the encoder, ≥ 1")
    )
    dtype: str = field(
        default="float32", validator=in_(DTYPES), metadata=doc("number type it computes in")
    )
    tile: int | None = field(
        default=None,
        validator=_tile,
        metadata=doc(
            "side of a square tile that larger frames are cut into, in pixels as diffusers counts "
            "them (Wan 2.2 encodes twice that); a multiple of 16; null: frames are never cut"
        ),
    )
    overlap: int = field(
        default=64,
        validator=_multiple_of_16,
        metadata=doc("pixels that tiles share and blend over, a multiple of 16, below the tile's"),
    )

    def __attrs_post_init__(self) -> None:
        if self.tile is not None and self.overlap >= self.tile:
            raise ValueError(f"overlap {self.overlap} must be less than the tile's {self.tile}")

    @property
    def stride(self) -> Size3:
        """Pixels to a latent cell."""
        raise NotImplementedError


@frozen(kw_only=True)
class WanVae(VaeSpec):
    """Wan's causal VAE: 2.1 (also of Wan 2.2 14B; 16 channels, 4×8×8) or 2.2 (48, 4×16×16)."""

    weights: str = field(
        default=WAN21_HUB,
        validator=_names_weights,
        metadata=doc(f"{WEIGHTS}, or one .safetensors file, by diffusers' or original names"),
    )
    version: str = field(
        default="2.1",
        validator=in_(("2.1", "2.2")),
        metadata=doc("2.1, or 2.2: residual shortcuts, and frames patchified 2×2 first"),
    )
    width: int = field(default=96, validator=ge(1), metadata=doc("of its first level, ≥ 1"))
    decoder_width: int | None = field(
        default=None,
        validator=optional(ge(1)),
        metadata=doc("of the decoder's last level, ≥ 1; null: the encoder's"),
    )
    levels: tuple[int, ...] = field(
        default=(1, 2, 4, 4),
        validator=and_(each(ge(1)), _four_levels),
        metadata=doc("width of each of the four levels, in units of `width`, ≥ 1"),
    )

    @property
    def stride(self) -> Size3:
        """Pixels to a latent cell."""
        side = 16 if self.version == "2.2" else 8
        return Size3(time=4, height=side, width=side)


@frozen(kw_only=True)
class HunyuanVae(VaeSpec):
    """HunyuanVideo's VAE: 16 channels, 4×8×8; not causal, so it works in tiles of time."""

    weights: str = field(default=HUNYUAN_HUB, validator=_names_weights, metadata=doc(WEIGHTS))
    widths: tuple[int, ...] = field(
        default=(128, 256, 512, 512),
        validator=and_(each(ge(1)), _four_levels),
        metadata=doc("width of each of the four levels, multiples of `groups`"),
    )
    groups: int = field(default=32, validator=ge(1), metadata=doc("of the group norms, ≥ 1"))
    tile: int | None = field(
        default=256,
        validator=_tile,
        metadata=doc("side of a square tile in pixels, a multiple of 16; null: no tiles in space"),
    )
    tile_frames: int = field(
        default=16,
        validator=instance_of(int),
        metadata=doc("frames of a tile in time, beside its first; a multiple of 4, ≥ 4"),
    )
    tile_step: int = field(
        default=12,
        validator=instance_of(int),
        metadata=doc("frames from a tile to the next, a multiple of 4, half to all of tile_frames"),
    )

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        frames, step = self.tile_frames, self.tile_step
        if frames < 4 or frames % 4 or step % 4 or not frames <= 2 * step <= 2 * frames:
            raise ValueError(
                f"tile_frames {frames} and tile_step {step}: must be multiples of 4, and the "
                "step half to all of the frames"
            )

    @property
    def stride(self) -> Size3:
        """Pixels to a latent cell."""
        return Size3(time=4, height=8, width=8)


WAN21 = WanVae()
WAN22 = WanVae(version="2.2", weights=WAN22_HUB, channels=48, width=160, decoder_width=256)
