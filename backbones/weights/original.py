"""Names of the original releases turned into diffusers' own, for weights and for LoRA.

diffusers' converters know them. Beside those: HunyuanVideo's joined linears are cut at the width of
the model at hand (diffusers' converter knows the published one alone), ComfyUI's spelling of
HunyuanVideo is read, and FramePack's transformer, for which diffusers has no converter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from torch import Tensor

from ..blocks.base import DiffusersBackbone

Convert = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
HUNYUAN = "HunyuanVideoTransformer3DModel"
HUNYUAN_KIN = (HUNYUAN, "HunyuanVideoFramepackTransformer3DModel")
_LINEAR1 = re.compile(r"(.*)single_blocks\.(\d+)\.linear1\.(.+)")
# ComfyUI's names of HunyuanVideo, and the original release's.
# Source: ComfyUI, comfy/supported_models.py (`HunyuanVideo.process_unet_state_dict`).
_COMFYUI = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\b(img|txt|self)_attn\.(qkv|proj)\.", r"\1_attn_\2."),
        (r"_attn\.norm\.query_norm\.(?:scale|weight)\b", "_attn_q_norm.weight"),
        (r"_attn\.norm\.key_norm\.(?:scale|weight)\b", "_attn_k_norm.weight"),
        (r"^(single_blocks\.\d+)\.norm\.query_norm\.(?:scale|weight)\b", r"\1.q_norm.weight"),
        (r"^(single_blocks\.\d+)\.norm\.key_norm\.(?:scale|weight)\b", r"\1.k_norm.weight"),
        (r"(_mod|\.modulation)\.lin\.", r"\1.linear."),
        (r"((?:img|txt)_mlp|blocks\.\d+\.mlp)\.0\.", r"\1.fc1."),
        (r"((?:img|txt)_mlp|blocks\.\d+\.mlp)\.2\.", r"\1.fc2."),
        (r"^(time_in|guidance_in|txt_in\.t_embedder)\.in_layer\.", r"\1.mlp.0."),
        (r"^(time_in|guidance_in|txt_in\.t_embedder)\.out_layer\.", r"\1.mlp.2."),
        (r"^txt_in\.c_embedder\.in_layer\.", "txt_in.c_embedder.linear_1."),
        (r"^txt_in\.c_embedder\.out_layer\.", "txt_in.c_embedder.linear_2."),
    )
]


def original_converter(model: DiffusersBackbone) -> Convert:
    """Return what turns tensors of a model by original names into diffusers'.

    A tensor that is several of diffusers' comes back in its parts, along its first axis. Names that
    are none of the original's stay as they are.
    """
    if model.diffusers_class in HUNYUAN_KIN:
        width = model.config.num_attention_heads * model.config.attention_head_dim
        return lambda tensors: _of_hunyuan(tensors, width)
    known = SINGLE_FILE_LOADABLE_CLASSES.get(model.diffusers_class)
    if known is None:
        return dict
    convert, config = known["checkpoint_mapping_fn"], dict(model.config)
    return lambda tensors: dict(convert(checkpoint=dict(tensors), config=config))


def original_spelling(model: DiffusersBackbone, name: str) -> str:
    """Return the original release's name of a tensor that ComfyUI may call otherwise."""
    if model.diffusers_class in HUNYUAN_KIN:
        for pattern, spelled in _COMFYUI:
            name = pattern.sub(spelled, name)
    return name


def _of_hunyuan(tensors: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """Return tensors of a HunyuanVideo of a width D by diffusers' names."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, spelled in _COMFYUI:
            name = pattern.sub(spelled, name)
        match = _LINEAR1.fullmatch(name)
        if match is None:
            out[name] = tensor
            continue
        block, end = f"{match[1]}single_transformer_blocks.{match[2]}", match[3]
        rows = min(width, tensor.shape[0] // 4)  # of another model; its shapes will say so
        parts = tensor.split([rows, rows, rows, tensor.shape[0] - 3 * rows])
        for linear, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), parts,
                                strict=True):  # fmt: skip
            out[f"{block}.{linear}.{end}"] = part
    convert: Any = SINGLE_FILE_LOADABLE_CLASSES[HUNYUAN]["checkpoint_mapping_fn"]
    return dict(convert(checkpoint=out))
