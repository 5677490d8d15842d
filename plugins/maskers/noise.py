"""Masking by noise, as the paper pretrains (Eq. 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from ...core.codec import from_bytes, to_bytes
from ...core.draws import Draws
from ...core.errors import UserError
from ...core.flow import interpolate, levels
from ...core.grid import Rate
from ...core.history import History
from ...core.masker import Masker
from ...core.query import Query
from ...core.shapes import Counts, Frames, Latents, Targets
from ...core.text import Text
from ..specs import Noise

_REDUCE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "min": lambda x: x.amin(dim=2),
    "mean": lambda x: x.mean(dim=2),
    "max": lambda x: x.amax(dim=2),
}


class NoiseMasker(Masker[Noise]):
    """Noises all latents outside Ω by Eq. 1, each frame at a level of its own (method.md §2, §3).

    One count K is drawn for a batch (at most its shortest history), and for each sample, of its own
    random numbers, whether Ω is a run of frames or scattered, and whether all stays clean. LR
    latents get noise of their own, at the minimum (spec: or mean, or maximum) of the levels of the
    HR latents they cover. Pixels, where the history has them, are noised at the level of their
    latent, then clamped.
    """

    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        """Give the query; Ω, levels and noise come from `draws` alone.

        Raises:
            UserError: a history of the batch is empty, so that nothing can be asked.
        """
        omega = self._omega(history.length.cpu(), draws)
        hr = self._levels(history, omega, draws)
        lr = {rate: self._lr_levels(rate, x.shape[2], hr) for rate, x in history.lr.items()}
        masked = attrs.evolve(
            history,
            latents=noised(history.latents, hr, draws),
            lr={rate: noised(history.lr[rate], lr[rate], draws) for rate in sorted(lr)},
            pixels=_noised_pixels(history.pixels, hr, draws),
        )
        device = history.latents.device
        return Query(
            history=masked,
            text=text,
            omega=omega.to(device),
            targets=frames_at(history.latents, omega.to(device)),
            levels=hr.to(device),
            lr_levels={rate: x.to(device) for rate, x in lr.items()},
        )

    def masked(self, history: History, text: Text, draws: Draws) -> Query:
        """Give the query with no sample left clean; otherwise as when called."""
        always = NoiseMasker(attrs.evolve(self.spec, clean=0.0))
        return always(history, text, draws)

    def _omega(self, length: Counts, draws: Draws) -> Frames:
        shortest = int(length.min())
        if shortest < 1:
            raise UserError("a history of the batch is empty: there is no frame to ask for")
        drawn = int(torch.randint(len(self.spec.counts), (), generator=draws.shared))
        count = min(self.spec.counts[drawn], shortest)
        run = draws.uniform() < self.spec.contiguous
        rows = [
            (_run if one else _scattered)(int(n), count, generator)
            for n, one, generator in zip(length, run, draws.each, strict=True)
        ]
        return torch.stack(rows)

    def _levels(self, history: History, omega: Frames, draws: Draws) -> Tensor:
        spec = self.spec
        normal = draws.normal(history.size.time)
        # row by row: a vectorised sigmoid rounds a number by where in the tensor it stands
        rows = [levels(spec.low, n, mean=spec.mean, std=spec.std, shift=spec.shift) for n in normal]
        drawn = torch.stack(rows)
        clean = draws.uniform() < spec.clean
        return drawn.scatter(1, omega, 0.0).masked_fill(clean[:, None], 0.0)

    def _lr_levels(self, rate: Rate, count: int, hr: Tensor) -> Tensor:
        covered = hr[:, 1 : 1 + rate.time * (count - 1)]
        blocks = covered.unflatten(1, (count - 1, rate.time))
        return torch.cat([hr[:, :1], _REDUCE[self.spec.lr_level](blocks)], dim=1)


def frames_at(latents: Latents, omega: Frames) -> Targets:
    """Give copies of the latent frames Ω of each sample, `[B, C, K, H, W]`."""
    batch, channels, _, height, width = latents.shape
    index = omega[:, None, :, None, None].expand(batch, channels, -1, height, width)
    return latents.gather(2, index)


def noised(latents: Tensor, level: Tensor, draws: Draws) -> Tensor:
    """Give latents `[B, C, T, H, W]` with noise at a level for each frame `[B, T]` (Eq. 1).

    Noise is drawn on CPU in float32; level 0 leaves a frame as it is, to the bit.
    """
    noise = draws.normal(*latents.shape[1:])
    wide = torch.promote_types(latents.dtype, torch.float32)
    t = level.to(latents.device, wide)[:, None, :, None, None]
    return interpolate(latents.to(wide), noise.to(latents.device, wide), t).to(latents.dtype)


def _noised_pixels(pixels: Tensor | None, level: Tensor, draws: Draws) -> Tensor | None:
    if pixels is None:
        return None
    latents = level.shape[1]
    stride = (pixels.shape[2] - 1) // max(latents - 1, 1)
    frames = torch.cat([level[:, :1], level[:, 1:].repeat_interleave(stride, dim=1)], dim=1)
    return to_bytes(noised(from_bytes(pixels), frames, draws))


def _run(length: int, count: int, generator: torch.Generator) -> Tensor:
    first = torch.randint(length - count + 1, (), generator=generator)
    return first + torch.arange(count)


def _scattered(length: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(length, generator=generator)[:count].sort().values
