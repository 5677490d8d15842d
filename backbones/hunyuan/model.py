"""HunyuanVideo as a backbone: diffusers' own model that reads memory beside text."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel, HunyuanVideoTransformer3DModel
from torch import Tensor

from ...core.values.text import Text
from ..blocks.rotary import Rotary
from ..weights.find import Release
from . import specs
from .block import axes_of, replicated
from .reader import HunyuanReader

# ⟦backbones/hunyuan/facts.py⟧ What the tensors of a HunyuanVideo tell of its config.


GUIDANCE = "time_text_embed.guidance_embedder."


def facts(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return numbers of diffusers' config from the shapes of a HunyuanVideo's tensors.

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


RELEASE = Release(facts=facts)


class Hunyuan(HunyuanReader, HunyuanVideoTransformer3DModel):  # type: ignore[misc]
    """`hunyuan` and `tiny-hunyuan`; see `HunyuanReader` for what is exact.

    The weights of a `token_replace` checkpoint (image to video) have the same names: its clean
    first frame is a memory of one latent at time 0.
    """

    diffusers_class = "HunyuanVideoTransformer3DModel"
    spec_class = specs.HunyuanSpec
    release = RELEASE

    # `wraps` keeps diffusers' signature, which its config loader reads.
    @functools.wraps(HunyuanVideoTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._use_memory_blocks()


# ⟦backbones/hunyuan/framepack.py⟧ FramePack as a backbone: HunyuanVideo's blocks, an image beside the text, a packed past.


FRAMEPACK_RELEASE = Release(original="HunyuanVideoTransformer3DModelPacked", facts=facts)


class FramePack(HunyuanReader, HunyuanVideoFramepackTransformer3DModel):  # type: ignore[misc]
    """FramePack's transformer, whose past is a memory like any other.

    With the tokens of its own projections (`clean_x_embedder`; compressor `patchifier` reads them
    out of these weights, here they are kept only for files) and the rotary embedding `averaged`, it
    is diffusers' model. An image is read where `Text.image` brings its embeddings: they stand
    before the words. Without one there are no image tokens.
    """

    diffusers_class = "HunyuanVideoFramepackTransformer3DModel"
    spec_class = specs.FramePack
    release = FRAMEPACK_RELEASE

    # `wraps` keeps diffusers' signature, which its config loader reads.
    @functools.wraps(HunyuanVideoFramepackTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._use_memory_blocks()

    def _words(self, text: Text, t: Tensor) -> tuple[Tensor, Tensor]:
        words, mask = super()._words(text, t)
        if text.image is None:
            return words, mask
        image = self.image_projection(text.image)
        real = mask.new_ones(image.shape[:2])
        return torch.cat([image, words], dim=1), torch.cat([real, mask], dim=1)

    def _turns(self, positions: Tensor, extents: Tensor | None = None) -> Rotary:
        if extents is None:
            return super()._turns(positions)
        turns = replicated(axes_of(self.config), positions, extents)
        device = self.device  # asked once: diffusers looks through all modules for it
        return Rotary(*(x.to(device) for x in turns))
