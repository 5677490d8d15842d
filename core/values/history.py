"""History: the past of a video as latents, and what is asked of it (design §2).

`History` is what compressors read. Training asks with a `Query` in Stage I (give frames back), with
a `Continuation` in Stage II (go on).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import attrs
import torch
from attrs import field, frozen
from jaxtyping import Float
from torch import Tensor

from .grid import Rate, Size3, ceil_div
from .shapes import Bytes, Counts, Frames, Latents, Targets
from .text import Text


@frozen(eq=False, kw_only=True)
class History:
    """A window of the past, or a chunk of one.

    Attributes:
        latents: HR latents `[B, C, T, H, W]`, full size and rate.
        lr: LR latents `[B, C, T', H', W']` by rate; LR latent j belongs to HR latent r·j of the
            window and travels in the chunk that holds it, so a chunk may hold none.
        start: absolute latent frame of the window's first latent, int64 `[B]`.
        offset: latent frames of the window that came before this chunk; 0 for a whole window.
        length: how many of the T latents are real, int64 `[B]`; the rest is padding.
        pixels: the video at full size, uint8 `[B, 3, F, P, Q]`, where a plugin needs it.
        cuts: for each sample, the times of hard cuts of the whole window, seconds of the source,
            also of such that lie behind this chunk; empty where they were not looked for.
    """

    latents: Latents
    lr: Mapping[Rate, Latents] = field(factory=dict)
    start: Counts = field()
    length: Counts = field()
    offset: int = 0
    pixels: Bytes | None = None
    cuts: tuple[tuple[float, ...], ...] = ()

    @start.default
    def _from_zero(self) -> Tensor:
        return torch.zeros(self.latents.shape[0], dtype=torch.int64)

    @length.default
    def _all_real(self) -> Tensor:
        return torch.full((self.latents.shape[0],), self.latents.shape[2], dtype=torch.int64)

    @property
    def size(self) -> Size3:
        """The latent size of the tensor, padding included."""
        time, height, width = self.latents.shape[2:]
        return Size3(time=time, height=height, width=width)

    @property
    def batch(self) -> int:
        """The number of samples."""
        return int(self.latents.shape[0])

    @property
    def ragged(self) -> bool:
        """Whether some samples are shorter than the tensor."""
        return bool((self.length < self.size.time).any())

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> History:
        """Return the same history with its latents on `device` (and as `dtype`); counts stay."""
        return attrs.evolve(
            self,
            latents=self.latents.to(device, dtype),
            lr={rate: latents.to(device, dtype) for rate, latents in self.lr.items()},
            pixels=None if self.pixels is None else self.pixels.to(device),
        )

    def select(self, order: Sequence[int]) -> History:
        """Return the samples in the order of the indices `order` (to shuffle or split a batch)."""
        index = torch.as_tensor(order, dtype=torch.int64)
        return attrs.evolve(
            self,
            latents=self.latents[index],
            lr={rate: latents[index] for rate, latents in self.lr.items()},
            start=self.start[index],
            length=self.length[index],
            pixels=None if self.pixels is None else self.pixels[index],
            cuts=tuple(self.cuts[i] for i in order) if self.cuts else (),
        )

    def chunk(self, first: int, last: int) -> History:
        """Return latents first … last − 1 of the window, with the LR latents and pixels of them.

        Raises:
            ValueError: the window is ragged or itself a chunk, or the range is empty or outside.
        """
        if self.ragged or self.offset:
            raise ValueError("only a whole window of equal lengths can be cut into chunks")
        if not 0 <= first < last <= self.size.time:
            raise ValueError(f"latents {first} to {last} are not in a window of {self.size.time}")
        return attrs.evolve(
            self,
            latents=self.latents[:, :, first:last],
            lr={r: x[:, :, lr_between(r, first, last)] for r, x in self.lr.items()},
            length=torch.full_like(self.length, last - first),
            offset=first,
            pixels=self._frames(first, last),
        )

    def _frames(self, first: int, last: int) -> Bytes | None:
        if self.pixels is None:
            return None
        stride = (self.pixels.shape[2] - 1) // max(1, self.size.time - 1)
        begin = stride * (first - 1) + 1 if first else 0
        return self.pixels[:, :, begin : stride * (last - 1) + 1]

    def chunks(self, lengths: Sequence[int]) -> Iterator[History]:
        """Yield the window cut into chunks of these lengths.

        Raises:
            ValueError: they do not add up to the window, or it cannot be cut (see `chunk`).
        """
        if sum(lengths) != self.size.time:
            raise ValueError(f"chunks of {sum(lengths)} latents for a window of {self.size.time}")
        first = 0
        for length in lengths:
            yield self.chunk(first, first + length)
            first += length


def lr_between(rate: Rate, first: int, last: int) -> slice:
    """Return the LR latents that travel with HR latents first … last − 1 of a window."""
    return slice(ceil_div(first, rate.time), ceil_div(last, rate.time))


@frozen(eq=False, kw_only=True)
class Query:
    """What Stage I asks (Eq. 3): give back the frames Ω of a masked history.

    A masker makes it; the encoder reads `history`, the backbone is trained on `targets`.

    Attributes:
        history: mask(H, Ω): the frames Ω clean, the others masked; the encoder's input.
        text: the caption.
        omega: Ω, latent frames counted inside the window, ascending, int64 `[B, K]`.
        targets: the clean latents of Ω, `[B, C, K, H, W]`.
        levels: noise level of every HR latent frame, `[B, T]`; 0 is clean.
        lr_levels: noise level of every LR latent, `[B, T']` by rate.
    """

    history: History
    text: Text
    omega: Frames
    targets: Targets
    levels: Float[Tensor, "B T"]
    lr_levels: Mapping[Rate, Float[Tensor, "B T"]] = field(factory=dict)

    @property
    def frames(self) -> Frames:
        """Absolute latent frames of the targets, start + Ω, int64 `[B, K]`."""
        return self.history.start[:, None].to(self.omega.device) + self.omega


@frozen(eq=False, kw_only=True)
class Continuation:
    """What Stage II asks (Eq. 4): continue a clean history.

    Attributes:
        history: H, clean and complete; may be empty of latents (T = 0) under memory dropout.
        target: the latents that follow, `[B, C, K, H, W]`.
        frames: their absolute latent frames, int64 `[B, K]`.
        prompt: the storyboard prompt nearest in time.
    """

    history: History
    target: Targets
    frames: Frames
    prompt: Text
