"""A backbone under trial: random inputs of its shapes, and what it makes of them."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..backbone import Backbone
from ..calls import Cache
from ..memory import Memory, Part
from ..text import Text

BATCH = 2
TOLERANCE = 1e-4  # of the greatest value, between two ways that only round differently


@frozen(kw_only=True)
class Trial:
    """A backbone and random inputs of its shapes."""

    backbone: Backbone
    seed: int

    def draw(self, *shape: int, salt: int = 0) -> Tensor:
        """Random normal numbers where the backbone is."""
        random = torch.Generator().manual_seed(self.seed * 1000 + salt)
        like = next(self.backbone.parameters())
        return torch.randn(shape, generator=random).to(like.device)

    def latents(self) -> Tensor:
        """Noisy targets of odd height and width, `[B, C, K, H, W]`."""
        shapes = self.backbone.geometry
        patch = shapes.patch
        size = (2 * patch.time, 2 * patch.height + 1, 3 * patch.width + 1)
        return self.draw(BATCH, shapes.channels, *size, salt=1)

    def frames(self, first: int = 9) -> Tensor:
        """Absolute frames of the targets, `[B, K]`, with a gap in sample 1."""
        count = 2 * self.backbone.geometry.patch.time
        frames = torch.arange(first, first + count).repeat(BATCH, 1)
        frames[1] += 3
        return frames.to(self.latents().device)

    def text(self, salt: int = 2) -> Text:
        """Random prompts."""
        blank = self.backbone.blank_text(BATCH, 5)
        noise = self.draw(*blank.embeddings.shape, salt=salt).to(blank.embeddings.dtype)
        pooled = blank.pooled
        if pooled is not None:
            pooled = self.draw(*pooled.shape, salt=salt + 1).to(pooled.dtype)
        return attrs.evolve(blank, embeddings=noise, pooled=pooled)

    def memory(self, tokens: int = 6, features: Mapping[str, int] | None = None) -> Memory:
        """Random memory at places between cells, with features of these widths."""
        shape = (BATCH, tokens)
        places = self.draw(*shape, 3, salt=4).double().abs() * 2
        named = {n: self.draw(*shape, w, salt=6) for n, w in (features or {}).items()}
        part = Part(
            name="trial",
            tokens=self.draw(*shape, self.backbone.geometry.width, salt=5),
            positions=places,
            extents=torch.ones_like(places),
            valid=torch.ones(shape, dtype=torch.bool, device=places.device),
            features=named,
        )
        return Memory(parts=(part,))

    def velocity(
        self,
        memory: Memory | Cache | None,
        order: tuple[int, ...] = (0, 1),
        first: int = 9,
        salt: int = 2,
        times: tuple[float, float] = (0.3, 0.8),
    ) -> Tensor:
        """The velocity of the samples `order`, whose memory is given, at their `times`."""
        index = list(order)
        context = self.backbone.context(self.text(salt).select(index), memory)
        noisy, frames = self.latents()[index], self.frames(first)[index]
        t = torch.tensor(times, device=noisy.device)[index]
        return self.backbone.velocity(noisy, t, frames, context)


def apart(x: Tensor, y: Tensor) -> bool:
    """Whether two outputs differ by more than rounding."""
    return float((x - y).abs().max()) > 1e-6 * max(1e-3, float(y.abs().max()))
