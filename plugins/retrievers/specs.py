"""Specs of the built-in retrievers; light: no torch."""

from __future__ import annotations

from attrs import field, frozen

from ...core.interfaces.spec import RetrieverSpec, between, doc, ge, gt, in_, instance_of, named
from ...core.values.grid import Rate


@frozen(kw_only=True)
class Flow(RetrieverSpec):
    """The DiT retrieves the frames from memory, through a flow-matching scheduler."""

    steps: int = field(
        default=1,
        validator=ge(1),
        metadata=doc("1: the posterior mean, which PSNR likes; ≥ 20: a sample, which eyes like"),
    )
    guidance: float = field(
        default=1.0,
        validator=ge(0.0),
        metadata=doc("weight of classifier-free guidance by the prompt; 1 is none"),
    )
    group: int = field(
        default=4, validator=ge(1), metadata=doc("latent frames retrieved in one pass, ≥ 1")
    )


@frozen(kw_only=True)
class Probe(RetrieverSpec):
    """A small head on the frozen memory retrieves the frames, independent of the generator."""

    weights: str | None = field(
        default=None,
        validator=named("a file"),
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

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be dealt over heads {self.heads}")


@frozen(kw_only=True)
class Upsample(RetrieverSpec):
    """Floor: the LR latents decoded and upsampled, which is all that the LR branch holds."""

    rate: Rate = field(
        default=Rate(height=4, width=4, time=2),
        validator=instance_of(Rate),
        metadata=doc("rate of the LR latents, HxWxT"),
    )


@frozen(kw_only=True)
class Thumbnail(RetrieverSpec):
    """Floor: raw pixels of the same rate, upsampled; never passes the codec, so only a guide."""

    rate: Rate = field(
        default=Rate(height=4, width=4, time=2),
        validator=instance_of(Rate),
        metadata=doc("rate of the thumbnail, HxWxT"),
    )


@frozen(kw_only=True)
class MeanFrame(RetrieverSpec):
    """Floor: the mean of all frames, whatever is asked."""
