"""The figures of the return probe: PSNR by way of each clip, and means by kind of clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from attrs import field, frozen
from torch import Tensor

from ...core.measure.figures import Interval, interval

MEMORY, BOTH, ALONE, NONE = "memory", "memory and window", "window", "none"
OWN = "window model"
LAST, FIRST, CEILING = "last frame", "first seen", "ceiling"
ANSWERS = (MEMORY, BOTH, ALONE, NONE, OWN)
TRUTH = "returned"  # of pictures: the frame itself


@frozen(kw_only=True)
class Returned:
    """One clip that came back.

    Attributes:
        name: of the clip.
        seen: latents of the history, the clip's first.
        asked: the latents that were asked.
        psnr: of the returned frames in dB, by way.
        shown: one of those frames by way, and itself, uint8 `[3, P, Q]`.
    """

    name: str
    seen: int
    asked: tuple[int, ...]
    psnr: Mapping[str, float]
    shown: Mapping[str, Tensor] = field(eq=False, repr=False)

    @property
    def kind(self) -> str:
        """How the clip comes back: pan, cut or back."""
        return kind_of(self.name)


def kind_of(name: str) -> str:
    """Give how a clip of that name comes back."""
    return name.split("-")[0]


def over_clips(clips: Sequence[Returned]) -> dict[str, dict[str, Any]]:
    """Give by kind of clip, and over all, each way's mean and what memory has over the others."""
    kinds = ("all", *dict.fromkeys(clip.kind for clip in clips))
    return {kind: _table([clip for clip in clips if kind in ("all", clip.kind)]) for kind in kinds}


def _table(clips: Sequence[Returned]) -> dict[str, Any]:
    ways = clips[0].psnr
    means = {way: interval([clip.psnr[way] for clip in clips]) for way in ways}
    over = {way: _over(clips, way) for way in ways if way not in (MEMORY, FIRST, CEILING)}
    return {
        "clips": len(clips),
        "psnr": {way: attrs.asdict(found) for way, found in means.items()},
        "memory_over": {way: attrs.asdict(found) for way, found in over.items()},
    }


def _over(clips: Sequence[Returned], way: str) -> Interval:
    return interval([clip.psnr[MEMORY] - clip.psnr[way] for clip in clips])
