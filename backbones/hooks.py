"""What this room ships: backbones, codecs, text encoders, and the shapes of published models."""

from __future__ import annotations

from ..core.hooks import Plugin, impl
from ..core.interfaces.spec import PluginSpec
from ..core.values.grid import Geometry
from .codecs import specs as codecs
from .hunyuan import specs as hunyuan
from .specs import DiTSpec
from .texts import specs as texts
from .wan import specs as wan
from .wan import specs as wans

_HERE = __package__


@impl
def longtake_backbones() -> list[Plugin]:
    """Return the backbones."""
    return [
        _record(
            "tiny-wan",
            "the real Wan 2.2 transformer with small numbers, for CPUs",
            wan.TinyWan,
            "wan.published:TinyWan",
        ),
        _record("wan21-1.3b", "Wan 2.1 T2V 1.3B", wans.Wan21Small, "wan.published:PublishedWan"),
        _record("wan21-14b", "Wan 2.1 T2V 14B", wans.Wan21Large, "wan.published:PublishedWan"),
        _record(
            "wan22-5b",
            "Wan 2.2 TI2V 5B, with its 16× VAE",
            wans.Wan22Dense5B,
            "wan.published:PublishedWan",
        ),
        _record(
            "wan22-14b",
            "Wan 2.2 T2V A14B: the high-noise expert, the low-noise one, or both",
            wans.Wan22Moe14B,
            "wan.experts:Wan22Moe",
        ),
        _record("hunyuan", "HunyuanVideo 12.8B", hunyuan.Hunyuan, "hunyuan.model:Hunyuan"),
        _record(
            "framepack",
            "FramePack's HunyuanVideo 12.8B; its memory is made by `patchifier`",
            hunyuan.FramePack,
            "hunyuan.model:FramePack",
        ),
        _record(
            "tiny-hunyuan",
            "the real HunyuanVideo transformer with small numbers, for CPUs",
            hunyuan.TinyHunyuan,
            "hunyuan.model:Hunyuan",
        ),
    ]


@impl
def longtake_codecs() -> list[Plugin]:
    """Return the video codecs."""
    return [
        Plugin(
            name="dct",
            summary="a weightless causal codec: the strongest coefficients of a 3D DCT",
            spec=codecs.Dct,
            target=f"{_HERE}.codecs.dct:DctCodec",
        ),
        _record(
            "wan-vae",
            "Wan's causal VAE: 2.1 (16 channels, 4x8x8) or 2.2 (48, 4x16x16)",
            codecs.WanVae,
            "codecs.wan:WanVaeCodec",
        ),
        _record(
            "hunyuan-vae",
            "HunyuanVideo's VAE, in tiles of time (16 channels, 4x8x8)",
            codecs.HunyuanVae,
            "codecs.hunyuan:HunyuanVaeCodec",
        ),
    ]


@impl
def longtake_text_encoders() -> list[Plugin]:
    """Return the text encoders."""
    return [
        Plugin(
            name="bytes",
            summary="a weightless text encoder: fixed vectors of bytes and places",
            spec=texts.Bytes,
            target=f"{_HERE}.texts.bytes:ByteEncoder",
        ),
        Plugin(
            name="umt5",
            summary="Wan's text encoder, UMT5-XXL",
            spec=texts.Umt5,
            target=f"{_HERE}.texts.umt5:Umt5Encoder",
        ),
        Plugin(
            name="llama-clip",
            summary="HunyuanVideo's text encoders, LLaMA in a template and CLIP",
            spec=texts.LlamaClip,
            target=f"{_HERE}.texts.llama_clip:LlamaClipEncoder",
        ),
    ]


@impl
def longtake_geometries() -> dict[str, Geometry]:
    """Return the shapes of published backbones: those of their specs."""
    specs = {plugin.name: plugin.spec for plugin in longtake_backbones()}
    dits = {name: spec for name, spec in specs.items() if issubclass(spec, DiTSpec)}
    return {name: spec().geometry for name, spec in dits.items() if spec.published}


def _record(name: str, summary: str, spec: type[PluginSpec], target: str) -> Plugin:
    return Plugin(name=name, summary=summary, spec=spec, target=f"{_HERE}.{target}")
