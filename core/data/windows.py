"""Windows: which slices of which clips make the batch of a step; a pure function of the step.

Resuming needs no saved loader state: step n of a seed is always the same batch, and a batch over
several processes is the batch of one process, dealt out.
"""

from __future__ import annotations

import random
from collections import defaultdict

from attrs import define, frozen
from torch.utils.data import Dataset

from ..errors import UserError
from ..experiment import TrainSpec
from ..fit import Needs
from ..grid import Geometry, shared_period
from ..history import History
from .batch import Batch, collate
from .crop import Area, Crops, crop
from .record import Record
from .store import Store


@frozen(kw_only=True)
class Window:
    """A slice of a clip: latents start … start + length − 1, of all of the frame or an area."""

    record: Record
    start: int
    length: int
    area: Area | None = None


@define
class Windows:
    """Plans the windows of every step.

    A batch has one size bucket and one length, so that nothing is padded. A bucket is drawn in
    proportion to its clips, a length evenly among those the bucket can fill, clips by the square
    root of their length (long ones more often, but not to the exclusion of the rest), each at most
    once in a batch where there are enough. With `train.crop` the buckets are of crops' sizes.
    """

    buckets: list[list[Record]]
    lengths: list[int]
    period: int
    batch: int
    seed: int
    crops: Crops | None = None

    @classmethod
    def of(cls, store: Store, geometry: Geometry, spec: TrainSpec, needs: Needs) -> Windows:
        """Give the plan for a store.

        Raises:
            UserError: no clip is as long as the shortest window.
        """
        period = shared_period(tuple(needs.rates))
        low, high = (geometry.latents(geometry.frames(s, store.fps)) for s in spec.seconds)
        lengths = [n for n in range(1, high + 1) if (n - 1) % period == 0]
        lengths = [n for n in lengths if n >= low - period + 1] or lengths[-1:]
        if not lengths:
            raise UserError(f"train.seconds {spec.seconds}: shorter than one latent frame")
        crops = Crops.of(spec.crop, geometry, needs.rates)
        buckets: dict[tuple[int, int], list[Record]] = defaultdict(list)
        for record in store.records:
            if record.latents >= lengths[0]:
                size = crops.size(record) if crops else (record.height, record.width)
                buckets[size].append(record)
        if not buckets:
            longest = max(record.latents for record in store.records)
            raise UserError(
                f"{store.root}: its longest clip has {longest} latents, the shortest training "
                f"window {lengths[0]} (train.seconds)"
            )
        ordered = [buckets[key] for key in sorted(buckets)]
        return cls(ordered, lengths, period, spec.batch, spec.seed, crops)

    def plan(self, step: int) -> list[Window]:
        """Give the windows of a step, over all processes."""
        rng = random.Random(f"{self.seed}-{step}")
        bucket = rng.choices(self.buckets, weights=[len(b) for b in self.buckets])[0]
        longest = max(record.latents for record in bucket)
        length = rng.choice([n for n in self.lengths if n <= longest])
        fitting = [record for record in bucket if record.latents >= length]
        return [self._window(rng, record, length) for record in self._draw(rng, fitting)]

    def _draw(self, rng: random.Random, records: list[Record]) -> list[Record]:
        drawn: list[Record] = []
        while len(drawn) < self.batch:
            pool = [r for r in records if r not in drawn[-(len(records) - 1) :]] or records
            weights = [record.latents**0.5 for record in pool]
            drawn.append(rng.choices(pool, weights=weights)[0])
        return drawn

    def _window(self, rng: random.Random, record: Record, length: int) -> Window:
        starts = (record.latents - length) // self.period
        start = self.period * rng.randint(0, starts)
        area = self.crops.draw(rng, record) if self.crops else None
        return Window(record=record, start=start, length=length, area=area)


@define
class WindowBatches(Dataset[Batch]):
    """The batches of a run by step, for a `torch.utils.data.DataLoader` with `batch_size=None`."""

    store: Store
    windows: Windows
    needs: Needs
    steps: int
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Give this process's share of the batch of a step."""
        plan = self.windows.plan(step)
        places = range(len(plan))[self.rank :: self.world]
        mine = [plan[place] for place in places]
        return collate(
            [self._history(window) for window in mine],
            [self.store.text(w.record, w.start, w.length) for w in mine],
            [w.record.id for w in mine],
            places,
        )

    def _history(self, window: Window) -> History:
        rates, pixels = sorted(self.needs.rates), self.needs.pixels
        found = self.store.window(window.record, window.start, window.length, rates, pixels)
        return crop(found, window.area) if window.area else found
