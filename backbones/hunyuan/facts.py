"""What the tensors of a HunyuanVideo tell of its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

GUIDANCE = "time_text_embed.guidance_embedder."


def facts(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Give numbers of diffusers' config from the shapes of a HunyuanVideo's tensors.

    Args:
        tensors: by diffusers' names; what is missing is left out.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    found: dict[str, Any] = {
        "num_layers": _blocks(shapes, "transformer_blocks."),
        "num_single_layers": _blocks(shapes, "single_transformer_blocks."),
        "guidance_embeds": any(name.startswith(GUIDANCE) for name in shapes),
    }
    if first := shapes.get("x_embedder.proj.weight"):
        found |= {"in_channels": first[1], "patch_size_t": first[2], "patch_size": first[3]}
        if last := shapes.get("proj_out.weight"):
            found["out_channels"] = last[0] // (first[2] * first[3] * first[4])
    if norm := shapes.get("transformer_blocks.0.attn.norm_q.weight"):
        found["attention_head_dim"] = norm[0]
        found["num_attention_heads"] = first[0] // norm[0] if first else None
    if text := shapes.get("context_embedder.proj_in.weight"):
        found["text_embed_dim"] = text[1]
    if pooled := shapes.get("time_text_embed.text_embedder.linear_1.weight"):
        found["pooled_projection_dim"] = pooled[1]
    return {name: value for name, value in found.items() if value is not None}


def _blocks(shapes: Mapping[str, Any], prefix: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(prefix)})
