"""The paper's encoder at the sizes of published backbones, with random weights and histories."""

from __future__ import annotations

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ...core.interfaces.compressor import Fit
from ...core.registry import build, registry
from ...core.values.grid import Geometry, Rate, Size3
from ...core.values.history import History
from ...plugins.compressors.conv import ConvCompressor
from ...plugins.compressors.specs import Conv

RATES = (Rate(height=4, width=4, time=2), Rate(height=2, width=2, time=2))


@frozen(kw_only=True)
class EncoderSetup:
    """An encoder to build and a history to run it on.

    Attributes:
        name: of the backbone, and the rate.
        geometry: of the backbone.
        spec: of the encoder.
        height, width: of a frame, pixels.
    """

    name: str
    geometry: Geometry
    spec: Conv
    height: int
    width: int

    def size(self, seconds: float) -> Size3:
        """Return the latent size of a history, its last block complete."""
        shapes, step = self.geometry, self.spec.rate.time
        frames = shapes.frames(seconds)
        size = shapes.latent_size(frames=frames, height=self.height, width=self.width)
        return attrs.evolve(size, time=1 + (size.time - 1) // step * step)

    def encoder(self, device: torch.device, dtype: torch.dtype) -> ConvCompressor:
        """Return the encoder with random weights, its zero-initialised output random, too."""
        shapes, generator = self.geometry, torch.Generator().manual_seed(0)
        patch = (shapes.patch.time, shapes.patch.height, shapes.patch.width)
        fit = Fit(
            geometry=shapes,
            patch_weight=torch.randn(shapes.width, shapes.channels, *patch, generator=generator)
            / (shapes.channels * shapes.patch.cells) ** 0.5,
            patch_bias=torch.zeros(shapes.width),
        )
        encoder: ConvCompressor = build(self.spec, fit)
        assert encoder.hr is not None  # the specs below have both branches
        torch.nn.init.normal_(encoder.hr.out.weight, std=0.02, generator=generator)
        return encoder.to(device, dtype)

    def history(
        self, seconds: float, device: torch.device, dtype: torch.dtype, batch: int = 1
    ) -> History:
        """Return a random history."""
        size, channels = self.size(seconds), self.geometry.channels
        generator = torch.Generator(device).manual_seed(1)

        def random(extent: Size3) -> Tensor:
            shape = (batch, channels, extent.time, extent.height, extent.width)
            return torch.randn(shape, generator=generator, device=device, dtype=dtype)

        rate = self.spec.rate
        return History(latents=random(size), lr={rate: random(rate.lr_size(size))})


def encoder_setups(*, tiny: bool) -> list[EncoderSetup]:
    """Return the encoders to measure: every published geometry at 4×4×2 and 2×2×2, 480×832.

    Backbones of one geometry (Wan 2.1 and 2.2 14B) count once, under the last name.
    """
    if tiny:
        return [_tiny(rate) for rate in RATES]
    names = {shapes: name for name, shapes in sorted(registry().geometries.items())}
    return [
        EncoderSetup(
            name=f"{name} {rate}",
            geometry=shapes,
            spec=Conv(rate=rate),
            height=480,
            width=832,
        )
        for shapes, name in names.items()
        for rate in RATES
    ]


def _tiny(rate: Rate) -> EncoderSetup:
    shapes = attrs.evolve(registry().geometries["wan22-14b"], width=32, channels=4)
    spec = Conv(rate=rate, channels=(4, 8), heads=2, head_width=4)
    return EncoderSetup(name=f"tiny {rate}", geometry=shapes, spec=spec, height=64, width=96)
