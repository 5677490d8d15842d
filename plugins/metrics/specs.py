"""Specs of the built-in metrics; light: no torch."""

from __future__ import annotations

from attrs import field, frozen

from ...core.interfaces.spec import MetricSpec, between, doc, gt, in_


@frozen(kw_only=True)
class Psnr(MetricSpec):
    """Peak signal-to-noise ratio of a frame, dB."""

    ceiling: float = field(
        default=60.0,
        validator=gt(0.0),
        metadata=doc("value given to frames that are equal, dB, > 0"),
    )


@frozen(kw_only=True)
class Ssim(MetricSpec):
    """Structural similarity of a frame, −1 to 1."""


@frozen(kw_only=True)
class MsSsim(MetricSpec):
    """Structural similarity of a frame over several scales, 0 to 1."""

    scales: int = field(
        default=3,
        validator=between(1, 5),
        metadata=doc(
            "scales, 1 to 5: 5 is the standard, from 176 pixels; 4 from 99; 3 from 44",
            recipe="metric.scales",
        ),
    )


@frozen(kw_only=True)
class HighBand(MetricSpec):
    """Energy of the fine detail of a frame over the original's; 1 is as much detail."""

    factor: int = field(
        default=4,
        validator=between(2, 64),
        metadata=doc("the band is what shrinking by this factor takes away, 2 to 64"),
    )


@frozen(kw_only=True)
class Lpips(MetricSpec):
    """Learned perceptual distance of a frame, 0 or more; an extra that needs torchvision."""

    net: str = field(
        default="alex",
        validator=in_(("alex", "vgg", "squeeze")),
        metadata=doc("the network it compares by: alex, vgg or squeeze"),
    )
