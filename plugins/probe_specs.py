"""Spec of the retriever `probe`; light, as all specs."""

from __future__ import annotations

from attrs import field, frozen

from ..core.spec import RetrieverSpec, between, doc, ge, gt, in_


@frozen(kw_only=True)
class Probe(RetrieverSpec):
    """A small head on the frozen memory gives the frames back, independent of the generator."""

    weights: str | None = field(
        default=None,
        metadata=doc("the fitted head, made by `longtake probe`; null: not fitted yet"),
    )
    layers: int = field(
        default=1, validator=in_((1, 2)), metadata=doc("cross-attention layers, 1 or 2")
    )
    width: int = field(
        default=128, validator=ge(1), metadata=doc("of the head's own states, a multiple of heads")
    )
    heads: int = field(default=4, validator=ge(1), metadata=doc("attention heads, ≥ 1"))
    steps: int = field(
        default=600, validator=ge(1), metadata=doc("optimizer steps of fitting, ≥ 1")
    )
    batch: int = field(default=4, validator=ge(1), metadata=doc("samples a step, ≥ 1"))
    rate: float = field(default=2e-3, validator=gt(0.0), metadata=doc("learning rate, > 0"))
    seed: int = field(
        default=0, validator=between(0, 2**62), metadata=doc("seed of fitting, 0 to 2^62")
    )

    @weights.validator
    def _is_text(self, attribute: object, value: str | None) -> None:
        if value is not None and not value:
            raise ValueError("must name a file, or be null")

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be dealt over heads {self.heads}")
