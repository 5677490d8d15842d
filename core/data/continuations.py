"""Sample what Stage II trains on: clips cut into a past and the target that follows it.

A cut is a latent h ≡ 1 modulo R, the lcm of the time rates: the past ends where memory cells end,
and a target of K ≡ 0 modulo R latents ends where the next past would. Seconds of shot borders come
from `cache.cuts`. A border that lies off the grid is moved to the next h, so that the target has
none of the old shot; the past then ends with fewer than R latents of the new one.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from typing import Self

import numpy as np
from attrs import define, field, frozen
from numpy.typing import NDArray

from ..errors import UserError
from ..experiment import FinetuneSpec, TrainSpec
from ..interfaces.compressor import Needs
from ..values.draws import drops_memory
from ..values.grid import Geometry, ceil_div, shared_period
from .captions import INSTANT
from .store import Record, Store
from .windows import Bucket, ClipWindow, Crops, left_out, moved_span, size_buckets

NOWHERE = -1  # the place of a cut in a clip that has none


@frozen(kw_only=True)
class CutGrid:
    """Where a clip may be cut for a target.

    Attributes:
        period: R.
        stride: video frames to a latent.
        cuts_inside: whether a target may have hard cuts in it.
    """

    period: int
    stride: int
    cuts_inside: bool

    def first_frame(self, latent: int) -> int:
        """Return the first video frame of a latent."""
        return self.stride * (latent - 1) + 1 if latent else 0

    def shot_frames(self, record: Record) -> list[int]:
        """Return the first frame of every shot of a clip but the first."""
        found = {math.ceil((second - INSTANT) * record.fps) for second in record.cuts or ()}
        return sorted(frame for frame in found if 0 < frame < record.frames)

    def legal(self, record: Record, target: int, *, least: int = 1) -> list[int]:
        """Return the latents h ≥ `least` at which a clip may be cut before a target, ascending.

        Args:
            record: the clip.
            target: K, latents of the target.
            least: of h.
        """
        shots = self.shot_frames(record)
        return [h for h in self._places(record, target, least) if self._fits(shots, h, target)]

    def last(self, record: Record, target: int) -> int:
        """Return the last of `legal`; `NOWHERE`: there is none."""
        shots, places = self.shot_frames(record), reversed(self._places(record, target, 1))
        return next((h for h in places if self._fits(shots, h, target)), NOWHERE)

    def _places(self, record: Record, target: int, least: int) -> range:
        """Return the places of the grid that leave room for a target."""
        first = 1 + self.period * ceil_div(max(0, least - 1), self.period)
        return range(first, record.latents - target + 1, self.period)

    def borders(self, record: Record, target: int, *, least: int = 1) -> list[int]:
        """Return those of `legal` that begin a shot: at its first frame or the next place after it.

        Where a target may have cuts in it, it is the nearest place.
        """
        step, shots = self.stride * self.period, self.shot_frames(record)
        bias = step // 2 if self.cuts_inside else step - 1  # to the nearest place, or the next
        found = {1 + self.period * ((frame - 1 + bias) // step) for frame in shots}
        return [h for h in self.legal(record, target, least=least) if h in found]

    def begins_whole(self, record: Record, length: int) -> bool:
        """Return whether the first `length` latents of a clip may be a target."""
        return record.latents >= length and self._fits(self.shot_frames(record), 0, length)

    def _fits(self, shots: list[int], first: int, count: int) -> bool:
        """Return whether latents first … first + count − 1 may be a target.

        `shots` are the first frames of shots, ascending.
        """
        if self.cuts_inside:
            return True
        behind = bisect_right(shots, self.first_frame(first))
        return behind == len(shots) or shots[behind] >= self.first_frame(first + count)


@frozen(eq=False)
class CutPlaces:
    """Where the clips of a bucket can be cut, worked out once for each length of target.

    Attributes:
        bucket: the clips, n of them.
        grid: where they may be cut.
    """

    bucket: Bucket
    grid: CutGrid
    _cut: list[int] = field(init=False, repr=False)  # the clips that have hard cuts
    _last: dict[int, NDArray[np.int64]] = field(factory=dict, init=False, repr=False)
    _whole: dict[int, NDArray[np.bool_]] = field(factory=dict, init=False, repr=False)

    @_cut.default
    def _with_cuts(self) -> list[int]:
        return [index for index, record in enumerate(self.bucket.records) if record.cuts]

    def last(self, target: int) -> NDArray[np.int64]:
        """Return the last place at which each clip may be cut, `[n]`; `NOWHERE`: it has none."""
        if target not in self._last:
            period, room = self.grid.period, self.bucket.latents - target - 1
            last = np.where(room >= 0, 1 + room // period * period, NOWHERE)
            for index in self._cut:  # often few: the others are not looked at one by one
                last[index] = self.grid.last(self.bucket.records[index], target)
            self._last[target] = last
        return self._last[target]

    def whole(self, length: int) -> NDArray[np.bool_]:
        """Return which clips may begin with a target of `length` latents, `[n]`."""
        if length not in self._whole:
            whole = self.bucket.latents >= length
            for index in self._cut:
                whole[index] = self.grid.begins_whole(self.bucket.records[index], length)
            self._whole[length] = whole
        return self._whole[length]


@define
class ContinuationSampler:
    """Samples the windows of every step of Stage II, a pure function of seed and step.

    A batch has one size, one length of past and one of target, so that nothing is padded. Size
    buckets and clips are drawn as Stage I draws them; lengths of target, then of past, evenly among
    those that the bucket can fill; a cut evenly among the places of a clip, or, of a share of
    samples, among its shot borders.

    Attributes:
        places: the clips by size, and where they can be cut.
        pasts: lengths of pasts, ≡ 1 modulo R, ascending.
        targets: lengths of targets, ≡ 0 modulo R, ascending.
    """

    places: list[CutPlaces]
    pasts: list[int]
    targets: list[int]
    train: TrainSpec
    finetune: FinetuneSpec
    crops: Crops | None = None

    @classmethod
    def of(
        cls,
        store: Store,
        geometry: Geometry,
        train: TrainSpec,
        finetune: FinetuneSpec,
        needs: Needs,
    ) -> Self:
        """Return the sampler of a store's clips.

        Raises:
            UserError: no clip is as long as the shortest past and target, or none has so much
                without a hard cut in the target.
        """
        period = shared_period(tuple(needs.rates))
        pasts = past_lengths(finetune.past, geometry, store.fps, period)
        targets = target_lengths(finetune.target, geometry, store.fps, period)
        grid = CutGrid(period=period, stride=store.stride, cuts_inside=finetune.cuts_inside)
        crops = Crops.of(train.crop, geometry, needs.rates)
        least = pasts[0] + targets[0]
        places = [CutPlaces(b, grid) for b in size_buckets(store, crops, least=least)]
        if not places:
            longest = max(record.latents for record in store.records)
            raise UserError(
                f"{store.root}: its longest clip has {longest} latents, the shortest past and "
                f"target {pasts[0]} + {targets[0]} (finetune.past, finetune.target)"
            )
        places = [x for x in places if x.last(targets[0]).max() >= pasts[0]]
        if not places:
            raise UserError(
                f"{store.root}: every target of {targets[0]} latents or more has a hard cut in "
                "it: shorten finetune.target, or --set finetune.cuts_inside=true"
            )
        return cls(places, pasts, targets, train, finetune, crops)

    def remarks(self, store: Store) -> list[str]:
        """Return what to say before training: clips that are left out, lengths that were moved."""
        past, target = self.pasts[0], self.targets[0]
        long = [record for record in store.records if record.latents >= past + target]
        short = [record for record in store.records if record.latents < past + target]
        grid = self.places[0].grid
        cut = [record for record in long if grid.last(record, target) < past]
        stride, fps = store.stride, store.fps
        return [
            *left_out(store, short, f"are shorter than the shortest past and target, {past} + "
                      f"{target} latents (finetune.past, finetune.target)"),
            *left_out(store, cut, "have a hard cut in every target behind a past "
                      "(finetune.target, finetune.cuts_inside)"),
            *moved_span("finetune.past", self.finetune.past, self.pasts, stride, fps),
            *moved_span("finetune.target", self.finetune.target, self.targets, stride, fps),
        ]  # fmt: skip

    def plan(self, step: int) -> list[ClipWindow]:
        """Return the windows of a step, over all processes."""
        rng = random.Random(f"{self.train.seed}-{step}-continue")
        sizes = [len(places.bucket.records) for places in self.places]
        places = rng.choices(self.places, weights=sizes)[0]
        begins = drops_memory(self.train.seed, step, self.train.memory_dropout)
        if begins and rng.random() < self.finetune.beginnings:
            target = rng.choice(self.targets)
            whole = places.whole(target + 1)
            if whole.any():
                records = places.bucket.draw_among(rng, self.train.batch, whole)
                return [self._window(rng, r, 0, target + 1, past=0) for r in records]
        fitting = [k for k in self.targets if places.last(k).max() >= self.pasts[0]]
        target = rng.choice(fitting)
        last = places.last(target)
        past = rng.choice([n for n in self.pasts if n <= last.max()])
        records = places.bucket.draw_among(rng, self.train.batch, last >= past)
        return [self._cut(rng, places.grid, record, past, target) for record in records]

    def _cut(
        self, rng: random.Random, grid: CutGrid, record: Record, past: int, target: int
    ) -> ClipWindow:
        wants_border = rng.random() < self.finetune.borders
        borders = grid.borders(record, target, least=past) if wants_border else []
        cut = rng.choice(borders or grid.legal(record, target, least=past))
        return self._window(rng, record, cut - past, past + target, past=past)

    def _window(
        self, rng: random.Random, record: Record, start: int, length: int, *, past: int
    ) -> ClipWindow:
        area = self.crops.draw(rng, record) if self.crops else None
        return ClipWindow(record=record, start=start, length=length, area=area, past=past)


def past_lengths(
    seconds: tuple[float, float], geometry: Geometry, fps: float, period: int
) -> list[int]:
    """Return the lengths ≡ 1 modulo `period` of pasts of some seconds, at least one."""
    low, high = (max(1, geometry.latents(geometry.frames(s, fps))) for s in seconds)
    first = 1 + period * min(ceil_div(low - 1, period), (high - 1) // period)
    return list(range(first, high + 1, period))


def target_lengths(
    seconds: tuple[float, float], geometry: Geometry, fps: float, period: int
) -> list[int]:
    """Return the lengths ≡ 0 modulo `period` of targets of some seconds, at least one."""
    step = period * geometry.vae_stride.time / fps  # seconds
    low, high = (max(1, round(s / step)) for s in seconds)
    return [period * n for n in range(low, high + 1)]


def unwatched(store: Store) -> int:
    """Return of how many clips hard cuts were not looked for."""
    return sum(record.cuts is None for record in store.records)
