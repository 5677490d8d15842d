"""The change probe: of what a thing was and what it is, which does a memory give back?

An answer is compared with the same frames as they would be in either state, where the thing is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from attrs import field, frozen
from torch import Tensor

from ...core.data.store import Record
from ...core.interfaces.codec import frames_of
from ...core.measure.result import Interval, interval
from ...core.registry import build
from ...plugins.metrics.specs import Psnr
from ..returns.ask import (
    CEILING,
    LAST,
    MEMORY,
    TRUTH,
    ReturnProbe,
    answers,
    decoded,
    middle_frame,
    past_of,
    scene_of,
    true_frames,
)
from .clips import NEW, OLD, SEEN, TIMES, region

WAS = "as it was"  # of pictures: the thing's older state


@frozen(kw_only=True)
class ChangeResult:
    """How near each way's answer for one clip is to the newer and to the older state.

    Attributes:
        name: of the clip; `when` and `what` of its change.
        seen: latents of the history, the clip's first.
        asked: the latents that were asked.
        newer, older: PSNR of the answer to the frames with the thing in that state, where the thing
            is, in dB, by way to answer.
        apart: PSNR of the two states to each other.
        shown: one of those frames by way, itself, and as it was, uint8 `[3, P, Q]`.
    """

    name: str
    when: str
    what: str
    seen: int
    asked: tuple[int, ...]
    newer: Mapping[str, float]
    older: Mapping[str, float]
    apart: float
    shown: Mapping[str, Tensor] = field(eq=False, repr=False)

    def lead(self, way: str) -> float:
        """Return by how much an answer is nearer to the newer state, in dB."""
        return self.newer[way] - self.older[way]


@torch.no_grad()
def probe_change(probe: ReturnProbe, record: Record, seed: int = 0) -> ChangeResult:
    """Return how near each way comes to either state of a thing, which it is shown in neither.

    The history shows both states and ends before the camera comes back. `last frame` repeats the
    newest frame of the history, elsewhere: what knows neither state; `ceiling` is the codec's own
    reconstruction of what is seen on the return.
    """
    store, stride = probe.store, probe.codec.stride.time
    when, what, *_ = record.name.split("-")
    seen = TIMES.seen(store.fps, stride, record.latents)
    asked = TIMES.asked(store.fps, stride, record.latents)
    scene = scene_of(probe, record, seen)
    truth = torch.cat([true_frames(scene, frames_of(index, stride)) for index in asked])
    states = {
        state: true_frames(scene, [_still(when, state, store.fps)]).expand_as(truth)
        for state in (NEW, OLD)
    }
    by_way = {
        **answers(probe, scene, past_of(probe, record, seen), asked, f"change {record.id}", seed),
        LAST: true_frames(scene, frames_of(seen - 1, stride)[-1:]).expand_as(truth),
        CEILING: decoded(scene, asked, scene.history.latents[:, :, list(asked)]),
    }
    pictures = {**by_way, TRUTH: truth, WAS: states[OLD]}
    return ChangeResult(
        name=record.name,
        when=when,
        what=what,
        seen=seen,
        asked=asked,
        newer={way: _psnr(states[NEW], frames) for way, frames in by_way.items()},
        older={way: _psnr(states[OLD], frames) for way, frames in by_way.items()},
        apart=_psnr(states[OLD], states[NEW]),
        shown={way: middle_frame(frames) for way, frames in pictures.items()},
    )


def _still(when: str, state: str, fps: float) -> int:
    """Return a frame in the middle of the seconds that show the view in a state, standing still."""
    begin, end = SEEN[when][state]
    return round((begin + end) / 2 * fps)


def _psnr(reference: Tensor, frames: Tensor) -> float:
    """Return the mean PSNR of frames `[F, 3, P, Q]` in dB, where the thing is."""
    rows, columns = region(*reference.shape[-2:])
    cut = (reference[..., rows, columns], frames[..., rows, columns])
    return float(build(Psnr())(*cut).mean())


def over_clips(clips: Sequence[ChangeResult]) -> dict[str, dict[str, Any]]:
    """Return by kind of change, and over all, what each way's answers are nearer to.

    Of each way: `newer` and `older`, mean PSNR to either state; `lead`, how much nearer to the
    newer one; `gives_newer`, the share of clips whose answer is nearer to it; `memory_over`, how
    much greater the lead of the memory is. All but means with intervals over clips.
    """
    kinds = ("all", *dict.fromkeys(name for clip in clips for name in (clip.when, clip.what)))
    return {
        kind: _table([clip for clip in clips if kind in ("all", clip.when, clip.what)])
        for kind in kinds
    }


def _table(clips: Sequence[ChangeResult]) -> dict[str, Any]:
    ways = list(clips[0].newer)
    return {
        "clips": len(clips),
        "apart": attrs.asdict(interval([clip.apart for clip in clips])),
        "newer": {way: _mean([clip.newer[way] for clip in clips]) for way in ways},
        "older": {way: _mean([clip.older[way] for clip in clips]) for way in ways},
        "lead": {way: attrs.asdict(_lead(clips, way)) for way in ways},
        "gives_newer": {
            way: attrs.asdict(interval([float(clip.lead(way) > 0) for clip in clips]))
            for way in ways
        },
        "memory_over": {
            way: attrs.asdict(interval([clip.lead(MEMORY) - clip.lead(way) for clip in clips]))
            for way in ways
            if way not in (MEMORY, CEILING)
        },
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _lead(clips: Sequence[ChangeResult], way: str) -> Interval:
    return interval([clip.lead(way) for clip in clips])
