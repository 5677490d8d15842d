"""What this room ships: backbones, codecs, text encoders, and the shapes of published models."""

from __future__ import annotations

from ..core.grid import Geometry, Size3
from ..core.hooks import Plugin, impl
from .codecs import specs as codecs
from .texts import specs as texts
from .wan import specs as wan

_HERE = __package__


@impl
def longtake_backbones() -> list[Plugin]:
    """Give the backbones."""
    return [
        Plugin(
            name="tiny-wan",
            summary="the real Wan 2.2 transformer with small numbers, for CPUs",
            spec=wan.TinyWan,
            target=f"{_HERE}.wan.tiny:TinyWan",
        )
    ]


@impl
def longtake_codecs() -> list[Plugin]:
    """Give the video codecs."""
    return [
        Plugin(
            name="dct",
            summary="a weightless causal codec: the strongest coefficients of a 3D DCT",
            spec=codecs.Dct,
            target=f"{_HERE}.codecs.dct:DctCodec",
        )
    ]


@impl
def longtake_text_encoders() -> list[Plugin]:
    """Give the text encoders."""
    return [
        Plugin(
            name="bytes",
            summary="a weightless text encoder: fixed vectors of bytes and places",
            spec=texts.Bytes,
            target=f"{_HERE}.texts.bytes:ByteEncoder",
        )
    ]


@impl
def longtake_geometries() -> dict[str, Geometry]:
    """Give the shapes of published backbones, from their configs."""
    return {
        "wan22-5b": _geometry(channels=48, space=16, width=3072, blocks=30, fps=24.0),
        "wan22-14b": _geometry(channels=16, space=8, width=5120, blocks=40, fps=16.0),
        # 20 blocks of two streams and 40 of one.
        "hunyuan": _geometry(channels=16, space=8, width=3072, blocks=60, fps=24.0),
    }


def _geometry(*, channels: int, space: int, width: int, blocks: int, fps: float) -> Geometry:
    return Geometry(
        channels=channels,
        vae_stride=Size3(time=4, height=space, width=space),
        patch=Size3(time=1, height=2, width=2),
        width=width,
        blocks=blocks,
        fps=fps,
    )
