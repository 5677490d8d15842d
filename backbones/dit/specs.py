"""What the specs of all diffusion transformers share; light: no torch, no diffusers."""

from __future__ import annotations

from attrs import field, frozen

from ...core.spec import BackboneSpec, doc, each, ge, in_, instance_of

DTYPES = ("float32", "float16", "bfloat16")


@frozen(kw_only=True)
class DiTSpec(BackboneSpec):
    """How memory enters a diffusion transformer, and where its weights come from."""

    attention: str = field(
        default="full",
        validator=in_(("full", "isolated", "isolated-causal")),
        metadata=doc(
            "full: memory is a token prefix; isolated: memory sees memory only, cacheable; "
            "isolated-causal: earlier memory only, so that the cache grows with a take"
        ),
    )
    memory_time: float | None = field(
        default=None,
        metadata=doc("time of memory tokens in (0, 1] or 0; null shares the targets' (full only)"),
    )
    cache_block: int = field(
        default=8,
        validator=ge(1),
        metadata=doc("isolated-causal: latents of a block, a multiple of all time rates, ≥ 1"),
    )
    rotary: str = field(
        default="centre",
        validator=in_(("centre", "averaged")),
        metadata=doc(
            "place of a memory token: its centre, or FramePack's mean of the rotary "
            "embedding over all cells that it covers"
        ),
    )
    weights: str | None = field(
        default=None,
        metadata=doc(
            "a diffusers folder, hub id (org/name), single .safetensors or .gguf file, or weights "
            "that ship; null: random weights"
        ),
    )
    dtype: str = field(
        default="float32", validator=in_(DTYPES), metadata=doc("number type of the frozen weights")
    )
    loras: tuple[str, ...] = field(
        default=(),
        validator=each(instance_of(str)),
        metadata=doc("more LoRA files that stay frozen beside ours, `file` or `file@0.8` (scale)"),
    )

    @memory_time.validator
    def _in_range(self, attribute: object, value: float | None) -> None:
        if value is not None and not 0.0 <= value <= 1.0:
            raise ValueError(f"must be between 0 and 1, or null for shared, not {value:g}")

    @weights.validator
    def _is_text(self, attribute: object, value: str | None) -> None:
        if value is not None and not value:
            raise ValueError("must name weights, or be null")

    def __attrs_post_init__(self) -> None:
        if self.attention != "full" and self.memory_time is None:
            raise ValueError(
                "memory_time is shared (null), but isolated memory must not see the targets' time: "
                "give a number, such as 0"
            )
