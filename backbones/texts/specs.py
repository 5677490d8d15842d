"""Specs of the built-in text encoders; light: no torch, no transformers."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from ...core.interfaces.spec import TextEncoderSpec, doc, ge, in_

DTYPES = ("float32", "float16", "bfloat16")
# Source: diffusers, pipelines/hunyuan_video, DEFAULT_PROMPT_TEMPLATE.
HUNYUAN_TEMPLATE = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Describe the video by detailing the following aspects: "
    "1. The main content and theme of the video."
    "2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "3. Actions, events, behaviors temporal relationships, physical movement changes of the "
    "objects."
    "4. background environment, light, style and atmosphere."
    "5. camera angles, movements, and transitions used in the video:<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
)


@frozen(kw_only=True)
class Bytes(TextEncoderSpec):
    """A weightless text encoder: fixed vectors of bytes and places."""

    width: int = field(default=64, validator=ge(2), metadata=doc("width E of an embedding, ≥ 2"))
    length: int = field(
        default=64, validator=ge(1), metadata=doc("bytes that are read; the rest is cut, ≥ 1")
    )
    pooled: int = field(
        default=0,
        validator=ge(0),
        metadata=doc("width of the one vector of a prompt (HunyuanVideo), ≥ 0; 0: none"),
    )


def _names_weights(instance: Any, attribute: Any, value: Any) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError("must name a diffusers folder or a hub id (org/name)")


@frozen(kw_only=True)
class WeightsSpec(TextEncoderSpec):
    """What text encoders with weights share: where these are and how they are loaded."""

    weights: str = field(validator=_names_weights, metadata=doc("a diffusers folder or a hub id"))
    dtype: str = field(
        default="bfloat16", validator=in_(DTYPES), metadata=doc("number type of the weights")
    )
    quantize: str = field(
        default="none",
        validator=in_(("none", "nf4")),
        metadata=doc("none, or nf4: large weights in 4 bits (needs bitsandbytes and a GPU)"),
    )


@frozen(kw_only=True)
class Umt5(WeightsSpec):
    """Wan's text encoder, UMT5-XXL: `text_encoder` and `tokenizer` of a Wan checkpoint."""

    weights: str = field(
        default="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        validator=_names_weights,
        metadata=doc(
            "a diffusers folder or hub id (org/name) with the subfolders text_encoder and tokenizer"
        ),
    )
    width: int = field(
        default=4096, validator=ge(1), metadata=doc("width E of an embedding, as in the weights")
    )
    length: int = field(
        default=512, validator=ge(1), metadata=doc("tokens that are read; the rest is cut, ≥ 1")
    )


@frozen(kw_only=True)
class LlamaClip(WeightsSpec):
    """HunyuanVideo's text encoders: hidden states of LLaMA in a template, CLIP's pooled vector."""

    weights: str = field(
        default="hunyuanvideo-community/HunyuanVideo",
        validator=_names_weights,
        metadata=doc(
            "a diffusers folder or hub id (org/name) with the subfolders text_encoder, tokenizer "
            "(LLaMA), text_encoder_2 and tokenizer_2 (CLIP)"
        ),
    )
    width: int = field(
        default=4096, validator=ge(1), metadata=doc("width E of an embedding, as in the weights")
    )
    pooled: int = field(
        default=768, validator=ge(1), metadata=doc("width of CLIP's vector, as in the weights")
    )
    length: int = field(
        default=256,
        validator=ge(1),
        metadata=doc("tokens that are read after the template; the rest is cut, ≥ 1"),
    )
    template: str = field(
        default=HUNYUAN_TEMPLATE, metadata=doc("what LLaMA reads; {} stands for the prompt")
    )
    crop: int = field(
        default=95,
        validator=ge(0),
        metadata=doc("tokens of the template before the prompt, which are dropped, ≥ 0"),
    )
    skip: int = field(
        default=2,
        validator=ge(0),
        metadata=doc("last layers of LLaMA whose hidden states are not used, ≥ 0"),
    )

    @template.validator
    def _has_one_place(self, attribute: object, value: str) -> None:
        before, place, after = value.partition("{}")
        if not place or any(brace in before + after for brace in "{}"):
            raise ValueError("must hold {} once, for the prompt, and no other brace")
