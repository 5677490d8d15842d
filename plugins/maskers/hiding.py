"""The built-in maskers: which frames are asked for, and how the others are hidden.

`HidingMasker` hides all frames outside Ω, each at a level; a kind says what a level does: `noise`,
`scale`, `shift` and `drop`. `none` is the control.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Generic, Self, TypeVar

import attrs
import torch
from attrs import frozen
from einops import rearrange, repeat
from torch import Tensor

from ...core.errors import UserError
from ...core.interfaces.codec import from_bytes, to_bytes
from ...core.interfaces.masker import Masker
from ...core.values.draws import Draws
from ...core.values.flow import interpolate, levels
from ...core.values.grid import Rate
from ...core.values.history import History, Query
from ...core.values.shapes import Counts, Frames, Latents, Targets
from ...core.values.text import Text
from .specs import Drop, GradedSpec, HidingSpec, Noise, OmegaSpec, Scale, Shift, Unmasked

H = TypeVar("H", bound=HidingSpec)
G = TypeVar("G", bound=GradedSpec)
_REDUCE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "min": lambda x: x.amin(dim=2),
    "mean": lambda x: x.mean(dim=2),
    "max": lambda x: x.amax(dim=2),
}


@frozen(eq=False, kw_only=True)
class Branch:
    """What a masker hides: HR latents, the LR latents of a rate, or pixels.

    Attributes:
        rate: of LR latents; None of HR latents and pixels.
        pixels: whether these are frames of pixels.
        times: where each frame lies in time, in HR latent frames of the window, float64 `[T]`.
        rows, columns: centres of the cells as shares of height and width, 0 to 1, float64 `[H]` and
            `[W]`: the same place of the picture has the same numbers in every branch.
    """

    rate: Rate | None = None
    pixels: bool = False
    times: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(
        cls, x: Tensor, *, rate: Rate | None = None, stride: int = 1, pixels: bool = False
    ) -> Self:
        """Return the branch of frames `[B, C, T, H, W]`.

        Args:
            x: the frames.
            rate: of LR latents.
            stride: frames of pixels in a latent.
            pixels: whether `x` is pixels.
        """
        count, step = torch.arange(x.shape[2], dtype=torch.float64), rate.time if rate else 1
        # frame 0 is alone; the others cover `step` latents each, or a `stride`-th of one
        times = torch.where(count > 0, count * step - (step - 1) / 2, 0.0)
        if pixels:
            times = torch.where(count > 0, ((count - 1) / stride).floor() + 1, 0.0)
        rows, columns = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in x.shape[3:])
        return cls(rate=rate, pixels=pixels, times=times, rows=rows, columns=columns)


class HidingMasker(Masker[H], Generic[H]):
    """Hides all frames outside Ω, each at a level in [0, 1]; a kind says what a level does.

    One count K is drawn for a batch (at most its shortest history), and for each sample, of its own
    random numbers, whether Ω is a run of frames or scattered, and whether all stays clean. LR
    latents are hidden on their own, at the minimum (spec: or mean, or maximum) of the levels of the
    HR latents they cover. Pixels, where the history has them, are hidden at the level of their
    latent as values in [−1, 1], then clamped.
    """

    @abstractmethod
    def hide(
        self, x: Tensor, level: Tensor, length: Counts, draws: Draws, branch: Branch
    ) -> Tensor:
        """Return frames as they look at their levels; at level 0 as they are, to the bit.

        Args:
            x: `[B, C, T, H, W]`, float32 or wider: HR latents, LR latents or pixels in [−1, 1].
            level: of each frame, `[B, T]`, on the device of `x`.
            length: real frames of each sample, `[B]`.
            draws: what is random about it.
            branch: which latents `x` are, and where their cells lie in the frame, so that what is
                hidden in one branch can be hidden in the others, too.
        """

    def draw_levels(self, history: History, draws: Draws) -> Tensor:
        """Draw the level of every frame `[B, T]`, as if none were asked for; here all are 1."""
        return torch.ones(history.batch, history.size.time)

    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        """Return the query; Ω, levels and all that is random come from `draws` alone.

        Raises:
            UserError: a history of the batch is empty, so that nothing can be asked.
        """
        omega = draw_omega(self.spec, history.length.cpu(), draws)
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
        """Return the query with no sample left clean; otherwise as when called."""
        always = copy.copy(self)
        always.spec = attrs.evolve(self.spec, clean=0.0)
        return always(history, text, draws)

    def _levels(self, history: History, omega: Frames, draws: Draws) -> Tensor:
        level = self.draw_levels(history, draws)
        clean = draws.uniform() < self.spec.clean
        return level.scatter(1, omega, 0.0).masked_fill(clean[:, None], 0.0)

    def _lr_levels(self, rate: Rate, count: int, hr: Tensor) -> Tensor:
        covered = hr[:, 1 : 1 + rate.time * (count - 1)]  # latent 0 is its own
        blocks = rearrange(covered, "b (count time) -> b count time", time=rate.time)
        return torch.cat([hr[:, :1], _REDUCE[self.spec.lr_level](blocks)], dim=1)

    def _hidden(
        self, history: History, hr: Tensor, lr: Mapping[Rate, Tensor], draws: Draws
    ) -> History:
        length = history.length.cpu()
        settled = {rate: torch.tensor([rate.settled_tokens(int(n)) for n in length]) for rate in lr}
        return attrs.evolve(
            history,
            latents=self._wide(history.latents, hr, length, draws, Branch.of(history.latents)),
            lr={
                r: self._wide(x, lr[r], settled[r], draws, Branch.of(x, rate=r))
                for r, x in sorted(history.lr.items())
            },
            pixels=self._pixels(history.pixels, hr, length, draws),
        )

    def _wide(
        self, x: Tensor, level: Tensor, length: Counts, draws: Draws, branch: Branch
    ) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.hide(x.to(wide), level.to(x.device, wide), length, draws, branch).to(x.dtype)

    def _pixels(
        self, pixels: Tensor | None, level: Tensor, length: Counts, draws: Draws
    ) -> Tensor | None:
        if pixels is None:
            return None
        stride = (pixels.shape[2] - 1) // max(level.shape[1] - 1, 1)
        later = repeat(level[:, 1:], "b t -> b (t frames)", frames=stride)
        by_frame = torch.cat([level[:, :1], later], dim=1)
        real = (stride * (length - 1) + 1).clamp(min=0)
        branch = Branch.of(pixels, stride=stride, pixels=True)
        return to_bytes(self._wide(from_bytes(pixels), by_frame, real, draws, branch))


class GradedMasker(HidingMasker[G], Generic[G]):
    """Draws a level ~ L(low, 1) for each frame (method.md §2)."""

    def draw_levels(self, history: History, draws: Draws) -> Tensor:
        """Draw levels in (0, 1], one logit-normal number a frame."""
        spec = self.spec
        normal = draws.normal(history.size.time)
        # row by row: a vectorised sigmoid rounds a number by where in the tensor it stands
        rows = [levels(spec.low, n, mean=spec.mean, std=spec.std, shift=spec.shift) for n in normal]
        return torch.stack(rows)


class NoiseMasker(GradedMasker[Noise]):
    """Noises all latents outside Ω by Eq. 1, each frame at a level of its own (method.md §2, §3).

    LR latents and pixels get noise of their own.
    """

    def hide(
        self, x: Tensor, level: Tensor, length: Counts, draws: Draws, branch: Branch
    ) -> Tensor:
        """Return (1 − level)·x + level·ε; ε is drawn on CPU in float32."""
        noise = draws.normal(*x.shape[1:])
        return interpolate(x, noise.to(x), per_frame(level))


class ScaleMasker(GradedMasker[Scale]):
    """Shrinks the values of frames outside Ω towards 0: contrast goes, structure stays.

    A masked frame keeps its content up to its level, so an encoder that is told no level can
    still read it where the level is not 1: a weaker mask than noise. Named, without numbers, as an
    alternative in the paper (method.md §3); that it means values, not sizes, is our reading.
    """

    def hide(
        self, x: Tensor, level: Tensor, length: Counts, draws: Draws, branch: Branch
    ) -> Tensor:
        """Return (1 − level)·x."""
        return (1 - per_frame(level)) * x


class ShiftMasker(GradedMasker[Shift]):
    """Moves the values of each frame outside Ω by one vector over channels, alike in all cells.

    The direction is random for each frame, of rms 1 over channels; its length is level × `amount`.
    As with `scale`, structure stays, so the mask is weaker than noise. Named, without numbers, as
    an alternative in the paper (method.md §3); that values move, not places, is our reading.
    """

    def hide(
        self, x: Tensor, level: Tensor, length: Counts, draws: Draws, branch: Branch
    ) -> Tensor:
        """Return x + level · amount · direction."""
        normal = draws.normal(x.shape[1], x.shape[2], 1, 1)
        rms = normal.square().mean(dim=1, keepdim=True).sqrt()
        direction = normal / rms.clamp_min(torch.finfo(normal.dtype).tiny)
        return x + self.spec.amount * per_frame(level) * direction.to(x)


class DropMasker(HidingMasker[Drop]):
    """Replaces frames outside Ω by zeros or by the mean of each channel: nothing of them is left.

    Their level is 1. An LR latent whose level lies between (`lr_level: mean`) is blended.
    """

    def hide(
        self, x: Tensor, level: Tensor, length: Counts, draws: Draws, branch: Branch
    ) -> Tensor:
        """Return (1 − level)·x + level·fill."""
        t = per_frame(level)
        if self.spec.fill == "zeros":
            return (1 - t) * x
        fill = torch.stack([_mean(sample, int(n)) for sample, n in zip(x, length, strict=True)])
        return (1 - t) * x + t * fill


def _mean(frames: Tensor, length: int) -> Tensor:
    """Return the mean of each channel over the first `length` frames, `[C, 1, 1, 1]`."""
    return frames[:, :length].mean(dim=(1, 2, 3), keepdim=True)


class NoMasker(Masker[Unmasked]):
    """Asks for Ω of a history that stays clean; what `measure` calls masked is clean here, too."""

    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        """Return the query; only Ω is random.

        Raises:
            UserError: a history of the batch is empty, so that nothing can be asked.
        """
        device = history.latents.device
        omega = draw_omega(self.spec, history.length.cpu(), draws).to(device)
        return Query(
            history=history,
            text=text,
            omega=omega,
            targets=frames_at(history.latents, omega),
            levels=torch.zeros(history.batch, history.size.time, device=device),
            lr_levels={
                rate: torch.zeros(history.batch, x.shape[2], device=device)
                for rate, x in history.lr.items()
            },
        )


def draw_omega(spec: OmegaSpec, length: Counts, draws: Draws) -> Frames:
    """Draw Ω, the frames that are asked for, `[B, K]`: ascending, inside each sample's length.

    K is drawn for the batch, at most its shortest history. `where: last` gives the last K frames
    of every sample; as many numbers are drawn as for `random`, so that the rest is masked alike.

    Raises:
        UserError: a history of the batch is empty, so that nothing can be asked.
    """
    shortest = int(length.min())
    if shortest < 1:
        raise UserError("a history of the batch is empty: there is no frame to ask for")
    choice = int(torch.randint(len(spec.counts), (), generator=draws.shared))
    count = min(spec.counts[choice], shortest)
    run = draws.uniform() < spec.contiguous
    rows = [
        (_run if one else _scattered)(int(n), count, generator)
        for n, one, generator in zip(length, run, draws.each, strict=True)
    ]
    if spec.where == "last":
        rows = [torch.arange(int(n) - count, int(n)) for n in length]
    return torch.stack(rows)


def _run(length: int, count: int, generator: torch.Generator) -> Tensor:
    first = torch.randint(length - count + 1, (), generator=generator)
    return first + torch.arange(count)


def _scattered(length: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(length, generator=generator)[:count].sort().values


def frames_at(latents: Latents, omega: Frames) -> Targets:
    """Return copies of the latent frames Ω of each sample, `[B, C, K, H, W]`."""
    _, channels, _, height, width = latents.shape
    index = repeat(omega, "b k -> b c k h w", c=channels, h=height, w=width)
    return latents.gather(2, index)


def per_frame(level: Tensor) -> Tensor:
    """Return levels `[B, T]` so that they broadcast against frames `[B, C, T, H, W]`."""
    return level[:, None, :, None, None]
