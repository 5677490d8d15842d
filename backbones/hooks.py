"""What this package brings: backbones, codecs, text encoders, shapes of published models."""

from __future__ import annotations

from ..core.hooks import Plugin, impl
from ..core.interfaces.spec import PluginSpec
from ..core.values.grid import Geometry
from .codecs import specs as codecs
from .hunyuan import specs as hunyuan
from .specs import DiTSpec
from .texts import specs as texts
from .wan import specs as wan


@impl
def longtake_backbones() -> list[Plugin]:
    """Return the backbones."""
    published = "wan.published:PublishedWanBackbone"
    return [
        _plugin(
            "tiny-wan",
            "the real Wan 2.2 transformer with small numbers, for CPUs",
            wan.TinyWan,
            "wan.published:TinyWanBackbone",
        ),
        _plugin("wan21-1.3b", "Wan 2.1 T2V 1.3B", wan.Wan21Small, published),
        _plugin("wan21-14b", "Wan 2.1 T2V 14B", wan.Wan21Large, published),
        _plugin("wan22-5b", "Wan 2.2 TI2V 5B, with its 16× VAE", wan.Wan22Dense5B, published),
        _plugin(
            "wan22-14b",
            "Wan 2.2 T2V A14B: the high-noise expert, the low-noise one, or both",
            wan.Wan22Moe14B,
            "wan.experts:Wan22MoeBackbone",
        ),
        _plugin("hunyuan", "HunyuanVideo 12.8B", hunyuan.Hunyuan, "hunyuan.model:HunyuanBackbone"),
        _plugin(
            "framepack",
            "FramePack's HunyuanVideo 12.8B; its memory is made by `patchifier`",
            hunyuan.FramePack,
            "hunyuan.model:FramePackBackbone",
        ),
        _plugin(
            "tiny-hunyuan",
            "the real HunyuanVideo transformer with small numbers, for CPUs",
            hunyuan.TinyHunyuan,
            "hunyuan.model:HunyuanBackbone",
        ),
    ]


@impl
def longtake_codecs() -> list[Plugin]:
    """Return the video codecs."""
    return [
        _plugin(
            "dct",
            "a weightless causal codec: the strongest coefficients of a 3D DCT",
            codecs.Dct,
            "codecs.dct:DctCodec",
        ),
        _plugin(
            "tiny-ae",
            "a small learned causal codec, for tiny backbones (16 channels, 4x8x8)",
            codecs.TinyAutoencoder,
            "codecs.autoencoder:TinyAutoencoderCodec",
        ),
        _plugin(
            "wan-vae",
            "Wan's causal VAE: 2.1 (16 channels, 4x8x8) or 2.2 (48, 4x16x16)",
            codecs.WanVae,
            "codecs.wan:WanVaeCodec",
        ),
        _plugin(
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
        _plugin(
            "bytes",
            "a weightless text encoder: fixed vectors of bytes and places",
            texts.Bytes,
            "texts.bytes:ByteEncoder",
        ),
        _plugin("umt5", "Wan's text encoder, UMT5-XXL", texts.Umt5, "texts.umt5:Umt5Encoder"),
        _plugin(
            "llama-clip",
            "HunyuanVideo's text encoders, LLaMA in a template and CLIP",
            texts.LlamaClip,
            "texts.llama_clip:LlamaClipEncoder",
        ),
    ]


@impl
def longtake_geometries() -> dict[str, Geometry]:
    """Return the shapes of published backbones, by plugin name: those of their specs."""
    specs = {plugin.name: plugin.spec for plugin in longtake_backbones()}
    dits = {name: spec for name, spec in specs.items() if issubclass(spec, DiTSpec)}
    return {name: spec().geometry for name, spec in dits.items() if spec.published}


def _plugin(name: str, summary: str, spec: type[PluginSpec], target: str) -> Plugin:
    return Plugin(name=name, summary=summary, spec=spec, target=f"{__package__}.{target}")
