"""The specs of all built-in plugins in one place; light: no torch."""

from __future__ import annotations

from .compressors.specs import (
    Clip,
    ContactSheet,
    Conv,
    DualEncoder,
    Keyframes,
    Merge,
    Patchifier,
    Pool,
    Transformer,
    VaeProj,
    Window,
)
from .maskers.specs import Drop, Noise, Scale, Shift, Unmasked
from .metrics.specs import HighBand, Lpips, MsSsim, Psnr, Ssim
from .retrievers.specs import Flow, MeanFrame, Probe, Thumbnail, Upsample

__all__ = [
    "Clip", "ContactSheet", "Conv", "Drop", "DualEncoder", "Flow", "HighBand", "Keyframes", "Lpips",
    "MeanFrame", "Merge", "MsSsim", "Noise", "Patchifier", "Pool", "Probe", "Psnr", "Scale",
    "Shift", "Ssim", "Thumbnail", "Transformer", "Unmasked", "Upsample", "VaeProj", "Window",
]  # fmt: skip
