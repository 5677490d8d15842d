"""LoRA: the adapters that a stage trains on a frozen backbone, as a spec."""

from __future__ import annotations

from attrs import field, frozen

from .spec import between, doc, each, ge, gt, in_


@frozen(kw_only=True)
class LoRA:
    """Low-rank adapters on the blocks' linears (the paper: rank 128 always)."""

    rank: int = field(default=128, validator=ge(1), metadata=doc("rank of every adapter, ≥ 1"))
    alpha: float = field(
        default=128.0, validator=gt(0.0), metadata=doc("scale of the adapters is alpha / rank")
    )
    targets: tuple[str, ...] = field(
        default=("attention", "feed-forward"),
        validator=each(in_(("attention", "cross-attention", "feed-forward")), at_least=1),
        metadata=doc("which linears: attention (self), cross-attention, feed-forward"),
    )
    dtype: str = field(
        default="float32",
        validator=in_(("float32", "bfloat16")),
        metadata=doc(
            "number type of the adapters and of AdamW's moments: float32, or bfloat16, which is "
            "half the memory and rounds small steps away"
        ),
    )
    seed: int = field(
        default=0,
        validator=between(0, 2**62),
        metadata=doc("seed of the A matrices, 0 to 2^62; B is zero"),
    )
