"""What maskers share that hide frames: levels of both branches, and what they are done to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import attrs
import torch
from torch import Tensor

from ...core.codec import from_bytes, to_bytes
from ...core.draws import Draws
from ...core.flow import levels
from ...core.grid import Rate
from ...core.history import History
from ...core.masker import Masker
from ...core.query import Query
from ...core.shapes import Counts, Frames
from ...core.text import Text
from ..masker_specs import Graded, Hiding
from .omega import choose, frames_at

H = TypeVar("H", bound=Hiding)
G = TypeVar("G", bound=Graded)
_REDUCE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "min": lambda x: x.amin(dim=2),
    "mean": lambda x: x.mean(dim=2),
    "max": lambda x: x.amax(dim=2),
}


class HidingMasker(Masker[H], Generic[H]):
    """Hides all frames outside Ω, each at a level in [0, 1]; a kind says what a level does.

    One count K is drawn for a batch (at most its shortest history), and for each sample, of its own
    random numbers, whether Ω is a run of frames or scattered, and whether all stays clean. LR
    latents are hidden on their own, at the minimum (spec: or mean, or maximum) of the levels of the
    HR latents they cover. Pixels, where the history has them, are hidden at the level of their
    latent as values in [−1, 1], then clamped.
    """

    @abstractmethod
    def hide(self, x: Tensor, level: Tensor, length: Counts, draws: Draws) -> Tensor:
        """Give frames as they look at their levels; at level 0 as they are, to the bit.

        Args:
            x: `[B, C, T, H, W]`, float32 or wider: HR latents, LR latents or pixels in [−1, 1].
            level: of each frame, `[B, T]`, on the device of `x`.
            length: real frames of each sample, `[B]`.
            draws: what is random about it.
        """

    def draw_levels(self, history: History, draws: Draws) -> Tensor:
        """Give the level of every frame `[B, T]`, as if none were asked for; here 1."""
        return torch.ones(history.batch, history.size.time)

    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        """Give the query; Ω, levels and all that is random come from `draws` alone.

        Raises:
            UserError: a history of the batch is empty, so that nothing can be asked.
        """
        omega = choose(self.spec, history.length.cpu(), draws)
        hr = self._levels(history, omega, draws)
        lr = {rate: self._lr_levels(rate, x.shape[2], hr) for rate, x in history.lr.items()}
        device = history.latents.device
        return Query(
            history=self._hidden(history, hr, lr, draws),
            text=text,
            omega=omega.to(device),
            targets=frames_at(history.latents, omega.to(device)),
            levels=hr.to(device),
            lr_levels={rate: x.to(device) for rate, x in lr.items()},
        )

    def masked(self, history: History, text: Text, draws: Draws) -> Query:
        """Give the query with no sample left clean; otherwise as when called."""
        always = type(self)(attrs.evolve(self.spec, clean=0.0))
        return always(history, text, draws)

    def _levels(self, history: History, omega: Frames, draws: Draws) -> Tensor:
        drawn = self.draw_levels(history, draws)
        clean = draws.uniform() < self.spec.clean
        return drawn.scatter(1, omega, 0.0).masked_fill(clean[:, None], 0.0)

    def _lr_levels(self, rate: Rate, count: int, hr: Tensor) -> Tensor:
        covered = hr[:, 1 : 1 + rate.time * (count - 1)]
        blocks = covered.unflatten(1, (count - 1, rate.time))
        return torch.cat([hr[:, :1], _REDUCE[self.spec.lr_level](blocks)], dim=1)

    def _hidden(
        self, history: History, hr: Tensor, lr: Mapping[Rate, Tensor], draws: Draws
    ) -> History:
        length = history.length.cpu()
        settled = {rate: torch.tensor([rate.settled_tokens(int(n)) for n in length]) for rate in lr}
        return attrs.evolve(
            history,
            latents=self._wide(history.latents, hr, length, draws),
            lr={r: self._wide(history.lr[r], lr[r], settled[r], draws) for r in sorted(lr)},
            pixels=self._pixels(history.pixels, hr, length, draws),
        )

    def _wide(self, x: Tensor, level: Tensor, length: Counts, draws: Draws) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.hide(x.to(wide), level.to(x.device, wide), length, draws).to(x.dtype)

    def _pixels(
        self, pixels: Tensor | None, level: Tensor, length: Counts, draws: Draws
    ) -> Tensor | None:
        if pixels is None:
            return None
        stride = (pixels.shape[2] - 1) // max(level.shape[1] - 1, 1)
        each = torch.cat([level[:, :1], level[:, 1:].repeat_interleave(stride, dim=1)], dim=1)
        real = (stride * (length - 1) + 1).clamp(min=0)
        return to_bytes(self._wide(from_bytes(pixels), each, real, draws))


class GradedMasker(HidingMasker[G], Generic[G]):
    """Draws a level ~ L(low, 1) for each frame (method.md §2)."""

    def draw_levels(self, history: History, draws: Draws) -> Tensor:
        """Give levels in (0, 1], one logit-normal draw a frame."""
        spec = self.spec
        normal = draws.normal(history.size.time)
        # row by row: a vectorised sigmoid rounds a number by where in the tensor it stands
        rows = [levels(spec.low, n, mean=spec.mean, std=spec.std, shift=spec.shift) for n in normal]
        return torch.stack(rows)


def per_frame(level: Tensor) -> Tensor:
    """Give levels `[B, T]` so that they broadcast against frames `[B, C, T, H, W]`."""
    return level[:, None, :, None, None]
