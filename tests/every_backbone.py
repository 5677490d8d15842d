"""Complete diffusers pipelines with small numbers, on disk, and the one value that names each.

Every folder is what `save_pretrained` of the published pipeline gives: the real classes, their
configs, tokenizers and schedulers. `Pipeline.change` is what a user types to put an experiment on
it: `--set backbone=...`, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, frozen

from longtake.backbones.codecs.specs import Dct, WanVae
from longtake.backbones.hunyuan.specs import Hunyuan, TinyHunyuan
from longtake.backbones.texts.specs import Bytes, LlamaClip, Umt5
from longtake.backbones.wan.specs import PublishedWan, Wan21Small, Wan22Dense5B, Wan22Moe14B
from longtake.core.config import to_json
from longtake.core.interfaces.spec import BackboneSpec

from .backbones import text_kit
from .backbones.vaes import HUNYUAN, NEW, OLD, diffusers_hunyuan, diffusers_wan

WAN: dict[str, Any] = dict(heads=2, head_width=12, layers=2, ffn=16)
PARTS = {
    "text_encoder": ("transformers", "UMT5EncoderModel"),
    "tokenizer": ("transformers", "T5TokenizerFast"),
    "vae": ("diffusers", "AutoencoderKLWan"),
    "scheduler": ("diffusers", "UniPCMultistepScheduler"),
    "transformer": ("diffusers", "WanTransformer3DModel"),
}
HUNYUAN_PARTS = {
    "text_encoder": ("transformers", "LlamaModel"),
    "tokenizer": ("transformers", "PreTrainedTokenizerFast"),
    "text_encoder_2": ("transformers", "CLIPTextModel"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "vae": ("diffusers", "AutoencoderKLHunyuanVideo"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
    "transformer": ("diffusers", "HunyuanVideoTransformer3DModel"),
}


@frozen(kw_only=True)
class Pipeline:
    """A folder with a pipeline, and the spec of the backbone that reads it."""

    folder: Path
    spec: BackboneSpec

    @property
    def change(self) -> str:
        """The value after `--set` that puts an experiment on it."""
        return f"backbone={json.dumps(to_json(self.spec))}"

    def but(self, **changes: Any) -> Pipeline:
        """The same folder, read by another spec."""
        return evolve(self, spec=evolve(self.spec, **changes))  # type: ignore[misc]


def wan21(root: Path) -> Pipeline:
    """Wan 2.1 1.3B."""
    numbers = WAN | dict(weights=str(root), text_encoder=_umt5(root))
    return _wan(root, Wan21Small(codec=evolve(OLD, weights=str(root), channels=16), **numbers))


def wan22_5b(root: Path) -> Pipeline:
    """Wan 2.2 5B: a VAE of 4×16×16 with 48 channels, a time for every token."""
    codec = evolve(NEW, weights=str(root), channels=48)
    numbers = WAN | dict(weights=str(root), text_encoder=_umt5(root))
    return _wan(root, Wan22Dense5B(codec=codec, **numbers), expand_timesteps=True)


def wan22_14b(root: Path) -> Pipeline:
    """Wan 2.2 14B: two transformers, of which the high-noise one trains unless `but` says so."""
    numbers = WAN | dict(weights=str(root), text_encoder=_umt5(root))
    spec = Wan22Moe14B(codec=evolve(OLD, weights=str(root), channels=16), **numbers)
    made = _wan(root, spec, boundary_ratio=0.875, transformer_2=PARTS["transformer"])
    _transformer(spec, seed=1).save_pretrained(root / "transformer_2")
    return made


def hunyuan(root: Path) -> Pipeline:
    """HunyuanVideo: LLaMA and CLIP, distilled on guidance."""
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoTransformer3DModel

    text = LlamaClip(
        weights=str(root), width=text_kit.WIDTH, pooled=text_kit.POOLED, length=16,
        template=text_kit.TEMPLATE, crop=4, skip=1,
    )  # fmt: skip
    codec = evolve(HUNYUAN, weights=str(root), channels=16)
    spec = Hunyuan(weights=str(root), codec=codec, text_encoder=text, **HUNYUAN_NUMBERS)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        HunyuanVideoTransformer3DModel(**spec.config).save_pretrained(root / "transformer")
        diffusers_hunyuan(codec).save_pretrained(root / "vae")
    text_kit.hunyuan_folder(root)
    FlowMatchEulerDiscreteScheduler(shift=7.0).save_pretrained(root / "scheduler")
    return _indexed(root, spec, "HunyuanVideoPipeline", HUNYUAN_PARTS)


HUNYUAN_NUMBERS: dict[str, Any] = dict(
    heads=2, head_width=16, rope=(4, 6, 6), layers=1, single_layers=1, refiner_layers=1,
    mlp_ratio=2.0,
)  # fmt: skip


def tiny_hunyuan(root: Path) -> Pipeline:
    """The embedded HunyuanVideo: no weights, nothing on disk."""
    text = Bytes(width=8, length=8, pooled=6)
    spec = TinyHunyuan(codec=Dct(channels=16), text_encoder=text, **HUNYUAN_NUMBERS)
    return Pipeline(folder=root, spec=spec)


PIPELINES: dict[str, Callable[[Path], Pipeline]] = {
    "wan21-1.3b": wan21,
    "wan22-5b": wan22_5b,
    "wan22-14b": wan22_14b,
    "hunyuan": hunyuan,
    "tiny-hunyuan": tiny_hunyuan,
}


def _umt5(root: Path) -> Umt5:
    return Umt5(weights=str(root), width=text_kit.WIDTH, length=16)


def _wan(root: Path, spec: PublishedWan, **index: Any) -> Pipeline:
    from diffusers import UniPCMultistepScheduler

    _transformer(spec, seed=0).save_pretrained(root / "transformer")
    _wan_vae(spec.codec).save_pretrained(root / "vae")
    text_kit.umt5_folder(root)
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=spec.shift
    )
    scheduler.save_pretrained(root / "scheduler")
    return _indexed(root, spec, "WanPipeline", PARTS, **index)


def _wan_vae(spec: WanVae) -> Any:
    """A VAE with a mean and a deviation for every channel, as the published ones have."""
    channels = torch.linspace(-1, 1, spec.channels)
    numbers = {"latents_mean": (channels / 4).tolist(), "latents_std": channels.exp().tolist()}
    with torch.random.fork_rng():
        return diffusers_wan(spec, **numbers)


def _transformer(spec: PublishedWan, seed: int) -> Any:
    from diffusers import WanTransformer3DModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return WanTransformer3DModel(**spec.config)


def _indexed(
    root: Path, spec: BackboneSpec, cls: str, parts: dict[str, tuple[str, str]], **more: Any
) -> Pipeline:
    index = {"_class_name": cls, "_diffusers_version": "0.35.0", **parts, **more}
    (root / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    return Pipeline(folder=root, spec=spec)
