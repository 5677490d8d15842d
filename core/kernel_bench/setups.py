"""The paper's encoder at the sizes of published backbones, with random weights and histories."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..interfaces.compressor import Compressor, Fit
from ..interfaces.spec import CompressorSpec
from ..registry import build, registry
from ..values.grid import Geometry, Rate, Size3
from ..values.history import History

PLUGIN = "conv"  # the paper's encoder
RATES = (Rate(height=4, width=4, time=2), Rate(height=2, width=2, time=2))
MEASURED = ("wan22-14b 4x4x2", "hunyuan 4x4x2", "wan22-5b 2x2x2")  # unless others are named


@frozen(kw_only=True)
class EncoderSetup:
    """An encoder to build and a history to run it on.

    Attributes:
        name: of the backbone, and the rate.
        geometry: of the backbone.
        spec: of the encoder.
        rate: of the encoder.
        height, width: of a frame, pixels.
    """

    name: str
    geometry: Geometry
    spec: CompressorSpec
    rate: Rate
    height: int
    width: int

    def size(self, seconds: float) -> Size3:
        """Return the latent size of a history, its last block complete."""
        shapes, step = self.geometry, self.rate.time
        frames = shapes.frames(seconds)
        size = shapes.latent_size(frames=frames, height=self.height, width=self.width)
        return attrs.evolve(size, time=1 + (size.time - 1) // step * step)

    @property
    def second(self) -> int:
        """How many latents a second is, in whole blocks of the rate, at least one block."""
        shapes, step = self.geometry, self.rate.time
        return step * max(1, round(shapes.fps / shapes.vae_stride.time / step))

    def tokens(self, size: Size3) -> int:
        """Return how many tokens a history of `size` latents has."""
        return self.rate.token_grid(size, self.geometry.patch).cells

    def fit(self) -> Fit:
        """Return a random first projection of the backbone."""
        shapes, generator = self.geometry, torch.Generator().manual_seed(0)
        patch = (shapes.patch.time, shapes.patch.height, shapes.patch.width)
        return Fit(
            geometry=shapes,
            patch_weight=torch.randn(shapes.width, shapes.channels, *patch, generator=generator)
            / (shapes.channels * shapes.patch.cells) ** 0.5,
            patch_bias=torch.zeros(shapes.width),
        )

    def encoder(self, device: torch.device, dtype: torch.dtype) -> Compressor[CompressorSpec]:
        """Return the encoder with random weights, those that begin at zero random, too.

        They are the same ones at every call.
        """
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            encoder: Compressor[CompressorSpec] = build(self.spec, self.fit())
            for parameter in encoder.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
        return encoder.to(device, dtype)

    def history(
        self, seconds: float, device: torch.device, dtype: torch.dtype, batch: int = 1
    ) -> History:
        """Return a random history."""
        size = self.size(seconds)
        latents = self.random(size, device, dtype, batch)
        lr = {self.rate: self.random(self.rate.lr_size(size), device, dtype, batch)}
        return History(latents=latents, lr=lr)

    def random(
        self, size: Size3, device: torch.device, dtype: torch.dtype, batch: int = 1
    ) -> Tensor:
        """Return random latents `[B, C, T, H, W]`."""
        generator = torch.Generator(device).manual_seed(1)
        shape = (batch, self.geometry.channels, size.time, size.height, size.width)
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)


def encoder_setups(*, tiny: bool) -> list[EncoderSetup]:
    """Return the encoders that can be measured: every published geometry at both rates, 480×832.

    Backbones of one geometry (Wan 2.1 and 2.2 14B) count once, under the last name.
    """
    return list(_tiny_setups() if tiny else _published_setups())


def _published_setups() -> Iterator[EncoderSetup]:
    names = {shapes: name for name, shapes in sorted(registry().geometries.items())}
    for shapes, name in names.items():
        for rate in RATES:
            yield EncoderSetup(
                name=f"{name} {rate}",
                geometry=shapes,
                spec=conv_spec(rate=rate),
                rate=rate,
                height=480,
                width=832,
            )


def _tiny_setups() -> Iterator[EncoderSetup]:
    shapes = attrs.evolve(registry().geometries["wan22-14b"], width=32, channels=4)
    for rate in RATES:
        yield EncoderSetup(
            name=f"tiny {rate}",
            geometry=shapes,
            spec=conv_spec(rate=rate, channels=(4, 8), heads=2, head_width=4),
            rate=rate,
            height=64,
            width=96,
        )


def conv_spec(**fields: object) -> CompressorSpec:
    """Return a spec of the paper's encoder; its other fields are those by default."""
    made = registry().plugins["compressor", PLUGIN].spec(**fields)
    assert isinstance(made, CompressorSpec)
    return made
