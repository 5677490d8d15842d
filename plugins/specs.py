"""Specs of the built-in plugins; light, so that listing them imports nothing heavy."""

from __future__ import annotations

from attrs import field, frozen

from ..core.grid import Rate
from ..core.spec import (
    CompressorSpec,
    RetrieverSpec,
    doc,
    each,
    ge,
    in_,
    instance_of,
)
from .compressor_specs import DualEncoder as DualEncoder
from .compressor_specs import Keyframes as Keyframes
from .compressor_specs import Merge as Merge
from .compressor_specs import Pool as Pool
from .compressor_specs import Transformer as Transformer
from .compressor_specs import Window as Window
from .masker_specs import Drop as Drop
from .masker_specs import Noise as Noise
from .masker_specs import Scale as Scale
from .masker_specs import Shift as Shift
from .masker_specs import Unmasked as Unmasked
from .metric_specs import HighBand as HighBand
from .metric_specs import Lpips as Lpips
from .metric_specs import MsSsim as MsSsim
from .metric_specs import Psnr as Psnr
from .metric_specs import Ssim as Ssim
from .patchifier_specs import Clip as Clip
from .patchifier_specs import Patchifier as Patchifier
from .patchifier_specs import VaeProj as VaeProj
from .probe_specs import Probe as Probe


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
    stem: str = field(
        default="latents",
        validator=in_(("latents", "pixels")),
        metadata=doc(
            "what the HR branch reads: latents; or pixels, through a conv of the VAE's own stride "
            "(4×8×8), which need frames in the store"
        ),
    )
    features: bool = field(
        default=False,
        validator=instance_of(bool),
        metadata=doc("give the HR branch's last hidden states to cross-attention in every block"),
    )

    def __attrs_post_init__(self) -> None:
        if not (self.lr or self.hr):
            raise ValueError("lr and hr are both off: nothing would be remembered")
        if not self.hr and (self.features or self.stem == "pixels"):
            raise ValueError("features and stem=pixels are of the HR branch: hr is off")


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
