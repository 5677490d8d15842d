"""What a clip is cached as once more: at other speeds, backwards, mirrored.

All of it happens before the codec: latents cannot be flipped. A variant has the source and the
fingerprint of its video, so that whoever parts data by videos parts variants with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Protocol

import attrs
import torch
from attrs import frozen
from torch import Tensor

from ..experiment import CacheSpec
from .captions import Caption


class Varied(Protocol):
    """What says how a clip differs from its original: a `Variant`, or a record of a store."""

    @property
    def speed(self) -> float:
        """How much faster it is."""

    @property
    def reverse(self) -> bool:
        """Whether it runs backwards."""

    @property
    def mirror(self) -> bool:
        """Whether it is mirrored left to right."""


def suffix(variant: Varied) -> str:
    """Return what a variant's id has behind its original's; "" for the original itself."""
    return (
        (f"-x{variant.speed:g}" if variant.speed != 1 else "")
        + ("-reverse" if variant.reverse else "")
        + ("-mirror" if variant.mirror else "")
    )


@frozen(kw_only=True)
class Variant:
    """How a clip differs from its original, which is the variant with all at their defaults.

    Attributes:
        speed: how much faster it is; it is as much shorter.
        reverse: whether it runs backwards.
        mirror: whether it is mirrored left to right.
    """

    speed: float = 1.0
    reverse: bool = False
    mirror: bool = False

    @classmethod
    def of(cls, varied: Varied) -> Variant:
        """Return the variant that a record is of."""
        return cls(speed=varied.speed, reverse=varied.reverse, mirror=varied.mirror)

    def frames(self, count: int, stride: int) -> int:
        """Return how many frames it has of an original of `count`, a whole number of latents.

        Args:
            count: frames of the original, 1 or more.
            stride: frames to a latent.
        """
        frames = 1 + int((count - 1) / self.speed + 1e-6)
        return 1 + stride * ((frames - 1) // stride)

    def apply(self, chunks: Iterator[Tensor], stride: int) -> Iterator[Tensor]:
        """Return frames that were read at its speed, uint8 `[1, 3, n, P, Q]`, as it shows them.

        What runs backwards is held in memory: its last frame comes first.

        Args:
            chunks: the frames in their order.
            stride: frames to a latent; what fills none at the end is left out.
        """
        if self.reverse:
            frames = torch.cat(list(chunks), dim=2)
            whole = 1 + stride * ((frames.shape[2] - 1) // stride)
            chunks = iter([frames[:, :, :whole].flip(2)])
        return (chunk.flip(-1) for chunk in chunks) if self.mirror else chunks

    def cuts(self, cuts: Sequence[float], seconds: float) -> tuple[float, ...]:
        """Return the cuts of an original of so many seconds, in those of the variant."""
        times = [(seconds - cut if self.reverse else cut) / self.speed for cut in cuts]
        return tuple(sorted(time for time in times if time > 0))

    def captions(self, captions: Sequence[Caption], seconds: float) -> tuple[Caption, ...]:
        """Return the captions of an original of so many seconds, in those of the variant."""
        turned = (self._turned(caption, seconds) for caption in captions)
        inside = [caption for caption in turned if caption.end is None or caption.end > 0]
        return tuple(
            attrs.evolve(
                caption,
                start=caption.start / self.speed,
                end=None if caption.end is None else caption.end / self.speed,
            )
            for caption in inside
        )

    def _turned(self, caption: Caption, seconds: float) -> Caption:
        if not self.reverse:
            return caption
        start = 0.0 if caption.end is None else max(0.0, seconds - caption.end)
        end = None if caption.start == 0 else seconds - caption.start
        return Caption(start=start, end=end, text=caption.text)


ORIGINAL = Variant()


def variants(spec: CacheSpec) -> list[Variant]:
    """Return what every video is cached as, the original first: all combinations of the fields."""
    ways = product((1.0, *spec.speeds), (False, spec.reverse), (False, spec.mirror))
    return list(dict.fromkeys(Variant(speed=s, reverse=r, mirror=m) for s, r, m in ways))
