"""The names that the original release and ComfyUI have for a HunyuanVideo's tensors, for tests."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

ORIGINAL = [  # diffusers' names, and those of the original release; the first that is there
    ("context_embedder.time_text_embed.timestep_embedder.linear_1", "txt_in.t_embedder.mlp.0"),
    ("context_embedder.time_text_embed.timestep_embedder.linear_2", "txt_in.t_embedder.mlp.2"),
    ("context_embedder.time_text_embed.text_embedder", "txt_in.c_embedder"),
    ("context_embedder.proj_in", "txt_in.input_embedder"),
    ("x_embedder", "img_in"),
    ("time_text_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
    ("time_text_embed.guidance_embedder.linear_1", "guidance_in.mlp.0"),
    ("time_text_embed.guidance_embedder.linear_2", "guidance_in.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
]
REFINER = [
    ("norm_out.linear", "adaLN_modulation.1"), ("attn.to_out.0", "self_attn_proj"),
    ("ff.net.0.proj", "mlp.fc1"), ("ff.net.2", "mlp.fc2"), ("attn.to_q", "self_attn_qkv"),
]  # fmt: skip
DUAL = [
    ("norm1.linear", "img_mod.linear"), ("norm1_context.linear", "txt_mod.linear"),
    ("attn.to_q", "img_attn_qkv"), ("attn.add_q_proj", "txt_attn_qkv"),
    ("attn.to_out.0", "img_attn_proj"), ("attn.to_add_out", "txt_attn_proj"),
    ("attn.norm_q", "img_attn_q_norm"), ("attn.norm_k", "img_attn_k_norm"),
    ("attn.norm_added_q", "txt_attn_q_norm"), ("attn.norm_added_k", "txt_attn_k_norm"),
    ("ff.net.0.proj", "img_mlp.fc1"), ("ff.net.2", "img_mlp.fc2"),
    ("ff_context.net.0.proj", "txt_mlp.fc1"), ("ff_context.net.2", "txt_mlp.fc2"),
]  # fmt: skip
SINGLE = [
    ("attn.to_q", "linear1"), ("proj_out", "linear2"), ("norm.linear", "modulation.linear"),
    ("attn.norm_q", "q_norm"), ("attn.norm_k", "k_norm"),
]  # fmt: skip
LISTS = [
    ("context_embedder.token_refiner.refiner_blocks", "txt_in.individual_token_refiner.blocks",
     REFINER),
    ("single_transformer_blocks", "single_blocks", SINGLE),
    ("transformer_blocks", "double_blocks", DUAL),
]  # fmt: skip
JOINED = {
    "attn.to_q": ("attn.to_k", "attn.to_v"), "attn.add_q_proj": ("attn.add_k_proj",
    "attn.add_v_proj"),
}  # fmt: skip


def original(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a HunyuanVideo as its original release has them."""
    found, used = {}, set[str]()
    for name, tensor in state.items():
        stem, _, end = name.rpartition(".")
        new, parts = stem, [name]
        for blocks, there, linears in LISTS:
            if stem.startswith(f"{blocks}."):
                number, _, linear = stem.removeprefix(f"{blocks}.").partition(".")
                new = f"{there}.{number}.{dict(linears).get(linear, linear)}"
                others = JOINED.get(linear, ())
                more = ("proj_mlp",) if linears is SINGLE and others else ()
                parts += [f"{blocks}.{number}.{x}.{end}" for x in (*others, *more)]
                break
        else:
            if stem == "proj_out":
                new = "final_layer.linear"
            for here, there in ORIGINAL:
                if stem.startswith(here):
                    new = stem.replace(here, there)
                    break
        used |= set(parts[1:])
        if name == f"norm_out.linear.{end}":  # scale before shift there
            tensor = torch.cat(tensor.chunk(2)[::-1])
        found[name] = (
            f"{new}.{end}", torch.cat([state[x] for x in parts]) if parts[1:] else tensor
        )  # fmt: skip
    return {new: x.contiguous() for name, (new, x) in found.items() if name not in used}


def comfyui(name: str) -> str:
    """ComfyUI's name of an original tensor.

    Source: comfy/supported_models.py, `HunyuanVideo.process_unet_state_dict`.
    """
    for old, new in (
        ("txt_in.t_embedder.mlp.0.", "txt_in.t_embedder.in_layer."),
        ("txt_in.t_embedder.mlp.2.", "txt_in.t_embedder.out_layer."),
        ("txt_in.c_embedder.linear_1.", "txt_in.c_embedder.in_layer."),
        ("txt_in.c_embedder.linear_2.", "txt_in.c_embedder.out_layer."),
        ("_mod.linear.", "_mod.lin."),
        ("_attn_qkv.", "_attn.qkv."),
        ("mlp.fc1.", "mlp.0."),
        ("mlp.fc2.", "mlp.2."),
        ("_attn_q_norm.weight", "_attn.norm.query_norm.scale"),
        ("_attn_k_norm.weight", "_attn.norm.key_norm.scale"),
        (".q_norm.weight", ".norm.query_norm.scale"),
        (".k_norm.weight", ".norm.key_norm.scale"),
        ("_attn_proj.", "_attn.proj."),
        (".modulation.linear.", ".modulation.lin."),
        ("_in.mlp.2.", "_in.out_layer."),
        ("_in.mlp.0.", "_in.in_layer."),
    ):
        name = name.replace(old, new)
    return name
