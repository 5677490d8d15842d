"""Specs of the built-in plugins; light, so that listing them imports nothing heavy."""

from __future__ import annotations

from attrs import field, frozen

from ..core.grid import Rate
from ..core.spec import (
    CompressorSpec,
    MaskerSpec,
    RetrieverSpec,
    between,
    doc,
    each,
    ge,
    gt,
    in_,
    instance_of,
    unit,
)
from .metric_specs import HighBand as HighBand
from .metric_specs import Lpips as Lpips
from .metric_specs import MsSsim as MsSsim
from .metric_specs import Psnr as Psnr
from .metric_specs import Ssim as Ssim


@frozen(kw_only=True)
class Conv(CompressorSpec):
    """The paper's encoder: an LR branch through the DiT's own projection plus an HR conv branch.

    Source: method.md §2; what the paper does not say is a field here with our default.
    """

    rate: Rate = field(
        default=Rate(height=4, width=4, time=2),
        validator=instance_of(Rate),
        metadata=doc("latent cells a memory cell stands for, HxWxT, steps of 1, 2, 4 or 8"),
    )
    channels: tuple[int, ...] = field(
        default=(64, 128, 256, 512),
        validator=each(ge(1), at_least=1),
        metadata=doc("widths of the convs, first to last; further stages keep the last"),
    )
    kernel: int = field(
        default=3,
        validator=in_((3, 4)),
        metadata=doc("kernel of strided convs in space: 3, or 4, which centres tokens exactly"),
    )
    norm: str = field(
        default="none",
        validator=in_(("none", "rms")),
        metadata=doc("norm over channels before each activation: none or rms"),
    )
    time_padding: str = field(
        default="replicate",
        validator=in_(("replicate", "zeros")),
        metadata=doc("what causal convs see before the first latent: replicate (of it) or zeros"),
    )
    attention: str = field(
        default="window",
        validator=in_(("window", "full", "none")),
        metadata=doc("window: block-causal, appending is exact; full: all memory frames; none"),
    )
    window: int = field(
        default=4, validator=ge(1), metadata=doc("memory frames that windowed attention sees, ≥ 1")
    )
    layers: int = field(
        default=1, validator=ge(1), metadata=doc("attention layers, ≥ 1 (none: attention=none)")
    )
    heads: int = field(default=8, validator=ge(1), metadata=doc("attention heads, ≥ 1"))
    head_width: int = field(
        default=64, validator=ge(1), metadata=doc("width of an attention head, ≥ 1")
    )
    rounding: str = field(
        default="ceil",
        validator=in_(("ceil", "floor")),
        metadata=doc("incomplete cells at right and bottom: ceil keeps them, floor drops them"),
    )
    lr: bool = field(
        default=True,
        validator=instance_of(bool),
        metadata=doc("the LR branch; False is the paper's Without-LR"),
    )
    hr: bool = field(
        default=True,
        validator=instance_of(bool),
        metadata=doc("the HR branch; False is the paper's Only-LR"),
    )

    def __attrs_post_init__(self) -> None:
        if not (self.lr or self.hr):
            raise ValueError("lr and hr are both off: nothing would be remembered")


@frozen(kw_only=True)
class Noise(MaskerSpec):
    """Masks by noise: all frames but Ω get a noise level drawn per frame (method.md §2, §3)."""

    counts: tuple[int, ...] = field(
        default=(1, 2, 4),
        validator=each(ge(1), at_least=1),
        metadata=doc("how many latent frames Ω may hold; one count is drawn for a batch"),
    )
    contiguous: float = field(
        default=0.5,
        validator=unit,
        metadata=doc("chance that Ω is one run of frames instead of scattered, 0 to 1"),
    )
    low: float = field(
        default=0.2,
        validator=unit,
        metadata=doc("least noise level of masked frames, 0 to 1: L(low, 1)"),
    )
    mean: float = field(
        default=0.0,
        validator=between(-10, 10),
        metadata=doc("mean of the logit-normal that levels are drawn from, −10 to 10"),
    )
    std: float = field(
        default=1.0,
        validator=between(0.01, 10),
        metadata=doc("its standard deviation, 0.01 to 10"),
    )
    shift: float = field(
        default=1.0, validator=gt(0.0), metadata=doc("its timestep shift (SD3), > 0")
    )
    clean: float = field(
        default=0.5,
        validator=unit,
        metadata=doc("chance that a sample's history is left clean, as in Stage II, 0 to 1"),
    )
    lr_level: str = field(
        default="min",
        validator=in_(("min", "mean", "max")),
        metadata=doc("level of an LR latent from the HR latents it covers: min, mean or max"),
    )


@frozen(kw_only=True)
class Flow(RetrieverSpec):
    """The DiT gives the frames back from memory, through a flow-matching scheduler."""

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
