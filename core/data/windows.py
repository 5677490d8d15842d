"""Sample the windows of a training step: which slices of which clips make its batch.

That is a pure function of seed and step. So resuming needs no saved loader state, and a batch over
several processes is the batch of one process, dealt out.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, Self

import attrs
import numpy as np
import torch
from attrs import define, field, frozen
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from ..experiment import TrainSpec
from ..interfaces.compressor import Needs
from ..values.grid import Geometry, Rate, shared_period
from ..values.history import Continuation, History
from ..values.text import Text
from .store import MOST_NAMED, Record, Store


@frozen(eq=False, kw_only=True)
class Batch:
    """What a training step reads: windows of several clips side by side, B samples.

    Attributes:
        history: the windows.
        text: their captions, embedded; in Stage II the prompts of the targets.
        names: which clips they are of.
        past: Stage II: how many latents of a window are past, the others are the target; 0: none.
            None: Stage 0 and I.
        places: the place of each sample in the step's batch over all processes.
    """

    history: History
    text: Text
    names: tuple[str, ...]
    past: int | None = None
    places: tuple[int, ...] = field()

    @places.default
    def _in_order(self) -> tuple[int, ...]:
        return tuple(range(len(self.names)))

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""
        return attrs.evolve(self, history=self.history.to(device), text=self.text.to(device))

    def select(self, order: Sequence[int]) -> Batch:
        """Return the samples at the indices `order` as a batch; each keeps its place."""
        return Batch(
            history=self.history.select(order),
            text=self.text.select(order),
            names=tuple(self.names[i] for i in order),
            past=self.past,
            places=tuple(self.places[i] for i in order),
        )

    def continuation(self) -> Continuation:
        """Return what Stage II asks: the windows cut at `past`.

        Raises:
            ValueError: it is a batch of another stage.
        """
        if self.past is None:
            raise ValueError("a batch of Stage I has no past and no target")
        window, count = self.history, self.history.size.time - self.past
        history = window.chunk(0, self.past) if self.past else window.without_latents()
        return Continuation(
            history=history,
            target=window.latents[:, :, self.past :],
            frames=window.start[:, None] + self.past + torch.arange(count),
            prompt=self.text,
        )

    def deal(self, count: int) -> list[Batch]:
        """Return `count` micro-batches of equal size: micro-batch k has samples k, k + count, ….

        Raises:
            ValueError: the samples cannot be dealt evenly.
        """
        if len(self.names) % count:
            raise ValueError(f"{len(self.names)} samples cannot be dealt into {count} equal parts")
        return [self.select(range(k, len(self.names), count)) for k in range(count)]


def collate(
    histories: Sequence[History],
    texts: Sequence[Text],
    names: Sequence[str],
    places: Sequence[int] | None = None,
    *,
    past: int | None = None,
) -> Batch:
    """Return one batch of single samples; shorter histories are padded by zeros at their end.

    Args:
        histories: one of one sample each, all with the same rates, all or none with pixels.
        texts: their captions.
        names: which clips they are of.
        places: of the samples in the step's batch; None: their order here.
        past: latents of each that are past, in Stage II.
    """
    pixels = [history.pixels for history in histories if history.pixels is not None]
    history = History(
        latents=pad_time([history.latents for history in histories]),
        lr={rate: pad_time([h.lr[rate] for h in histories]) for rate in histories[0].lr},
        start=torch.cat([history.start for history in histories]),
        length=torch.cat([history.length for history in histories]),
        pixels=pad_time(pixels) if pixels else None,
        cuts=tuple(c for h in histories for c in h.cuts) if all(h.cuts for h in histories) else (),
    )
    return Batch(
        history=history,
        text=stack_texts(texts),
        names=tuple(names),
        past=past,
        places=tuple(range(len(names)) if places is None else places),
    )


def pad_time(tensors: Sequence[Tensor]) -> Tensor:
    """Return tensors `[1, C, T, ...]` of different T as one batch, zeros behind the shorter."""
    longest = max(tensor.shape[2] for tensor in tensors)

    def pad(tensor: Tensor) -> Tensor:
        rest = longest - tensor.shape[2]
        shape = (*tensor.shape[:2], rest, *tensor.shape[3:])
        return torch.cat([tensor, tensor.new_zeros(shape)], dim=2) if rest else tensor

    return torch.cat([pad(tensor) for tensor in tensors])


def stack_texts(texts: Sequence[Text]) -> Text:
    """Return texts of one length, `[1, L, W]` each, as one batch."""
    pooled = [text.pooled for text in texts if text.pooled is not None]
    return Text(
        embeddings=torch.cat([text.embeddings for text in texts]),
        mask=torch.cat([text.mask for text in texts]),
        pooled=torch.cat(pooled) if pooled else None,
    )


@frozen(kw_only=True)
class Area:
    """A rectangle of latent cells of a frame."""

    top: int
    left: int
    height: int
    width: int


@frozen(kw_only=True)
class Crops:
    """Random crops of one size: cheap training samples at the scale of full frames.

    Their corners stand on the grid of the coarsest memory token, so that HR and LR cells stay
    aligned. A frame smaller than a crop is taken whole along that side.

    Attributes:
        height, width: latent rows and columns of a crop.
        rows, columns: latent rows and columns of a token of the coarsest rate.
    """

    height: int
    width: int
    rows: int
    columns: int

    @classmethod
    def of(cls, size: tuple[int, int], geometry: Geometry, rates: frozenset[Rate]) -> Self | None:
        """Return the crops of `train.crop`, or None where it is 0, 0: whole frames."""
        if not all(size):
            return None
        rows = geometry.patch.height * max((rate.height for rate in rates), default=1)
        columns = geometry.patch.width * max((rate.width for rate in rates), default=1)
        return cls(height=size[0], width=size[1], rows=rows, columns=columns)

    def size(self, record: Record) -> tuple[int, int]:
        """Return height and width of a clip's crops."""
        return min(record.height, self.height), min(record.width, self.width)

    def draw(self, rng: random.Random, record: Record) -> Area:
        """Draw a random crop of a clip."""
        height, width = self.size(record)
        top = self.rows * rng.randint(0, (record.height - height) // self.rows)
        left = self.columns * rng.randint(0, (record.width - width) // self.columns)
        return Area(top=top, left=left, height=height, width=width)


def crop(history: History, area: Area) -> History:
    """Crop a history to an area: its latents, the LR latents over it, and its pixels.

    The result is what encoding the cropped video would give only where the codec sees no further
    than its cells; elsewhere the border has seen beyond the crop.
    """
    bottom, right = area.top + area.height, area.left + area.width
    pixels = history.pixels
    if pixels is not None:
        scale = pixels.shape[-1] // history.latents.shape[-1]
        pixels = pixels[..., scale * area.top : scale * bottom, scale * area.left : scale * right]
    return attrs.evolve(
        history,
        latents=history.latents[..., area.top : bottom, area.left : right],
        lr={
            rate: x[
                ...,
                area.top // rate.height : -(-bottom // rate.height),
                area.left // rate.width : -(-right // rate.width),
            ]
            for rate, x in history.lr.items()
        },
        pixels=pixels,
    )


@frozen(kw_only=True)
class ClipWindow:
    """A slice of a clip: latents start … start + length − 1, of all of the frame or an area.

    `past` of them are past and the others the target, in Stage II; None in Stage 0 and I.
    """

    record: Record
    start: int
    length: int
    area: Area | None = None
    past: int | None = None


@frozen(eq=False)
class Bucket:
    """The clips of one size, with the numbers that drawing needs as arrays.

    Drawing from many thousand clips then reads no record but those that are drawn.

    Attributes:
        records: the clips, n of them.
        latents: their lengths, `[n]`.
        weights: the square roots of these, `[n]`.
    """

    records: list[Record] = field(repr=False)
    latents: NDArray[np.int64] = field(init=False, repr=False)
    weights: NDArray[np.float64] = field(init=False, repr=False)

    @latents.default
    def _latents(self) -> NDArray[np.int64]:
        return np.array([record.latents for record in self.records], np.int64)

    @weights.default
    def _weights(self) -> NDArray[np.float64]:
        return np.array([latents**0.5 for latents in self.latents.tolist()], np.float64)

    def draw(self, rng: random.Random, count: int, length: int) -> list[Record]:
        """Draw `count` of the clips that have `length` latents, by their weights."""
        return self.draw_among(rng, count, self.latents >= length)

    def draw_among(self, rng: random.Random, count: int, chosen: NDArray[np.bool_]) -> list[Record]:
        """Draw `count` of the clips that are `chosen`, `[n]`, by their weights.

        None is drawn twice, but where there are fewer than `count`; then each comes again only
        after all the others have. The draws are those of `rng.choices` among the clips that are
        left, in their order, to the bit.
        """
        fitting = np.flatnonzero(chosen)
        weights = self.weights[fitting]
        drawn: list[int] = []
        for number in range(count):
            if number >= len(fitting) > 1:  # the one that was drawn longest ago is free again
                freed = drawn[number - len(fitting)]
                weights[freed] = self.weights[fitting[freed]]
            bounds = np.cumsum(weights)  # summed in order, as `rng.choices` does
            place = int(np.searchsorted(bounds, rng.random() * float(bounds[-1]), side="right"))
            drawn.append(place)
            if len(fitting) > 1:
                weights[place] = 0.0  # adds nothing: the bounds are as if it were not there
        return [self.records[fitting[place]] for place in drawn]


def size_buckets(store: Store, crops: Crops | None, *, least: int) -> list[Bucket]:
    """Return the clips of a store of `least` latents or more by the size that they train at."""
    buckets: dict[tuple[int, int], list[Record]] = defaultdict(list)
    for record in store.records:
        if record.latents >= least:
            size = crops.size(record) if crops else (record.height, record.width)
            buckets[size].append(record)
    return [Bucket(buckets[size]) for size in sorted(buckets)]


@define
class WindowSampler:
    """Samples the windows of every step.

    A batch has one size bucket and one length, so that nothing is padded. A bucket is drawn in
    proportion to its clips, a length evenly among those the bucket can fill, clips by the square
    root of their length (long ones more often, but not to the exclusion of the rest), each at most
    once in a batch where there are enough. With `train.crop` the buckets are of crops' sizes.
    `seconds` are those that were asked for.
    """

    buckets: list[Bucket]
    lengths: list[int]
    period: int
    batch: int
    seed: int
    seconds: tuple[float, float]
    crops: Crops | None = None

    @classmethod
    def of(cls, store: Store, geometry: Geometry, spec: TrainSpec, needs: Needs) -> WindowSampler:
        """Return the sampler of a store's windows.

        Raises:
            UserError: `train.seconds` is shorter than a latent, or no clip is as long as the
                shortest window.
        """
        period = shared_period(tuple(needs.rates))
        low, high = (geometry.latents(geometry.frames(s, store.fps)) for s in spec.seconds)
        lengths = [n for n in range(1, high + 1) if (n - 1) % period == 0]
        # Rounded down to the grid, but where a long period would leave less than half of it, up.
        least = max(low - period + 1, (low + 1) // 2)
        lengths = [n for n in lengths if n >= least] or lengths[-1:]
        if not lengths:
            raise UserError(f"train.seconds {spec.seconds}: shorter than one latent frame")
        crops = Crops.of(spec.crop, geometry, needs.rates)
        buckets = size_buckets(store, crops, least=lengths[0])
        if not buckets:
            longest = max(record.latents for record in store.records)
            raise UserError(
                f"{store.root}: its longest clip has {longest} latents, the shortest training "
                f"window {lengths[0]} (train.seconds)"
            )
        return cls(buckets, lengths, period, spec.batch, spec.seed, spec.seconds, crops)

    def remarks(self, store: Store) -> list[str]:
        """Return what to say before training: clips that are left out, lengths that were moved."""
        shortest = self.lengths[0]
        short = [record for record in store.records if record.latents < shortest]
        return [
            *left_out(store, short, f"are shorter than the shortest window, {shortest} latents "
                      "(train.seconds)"),
            *moved_span("train.seconds", self.seconds, self.lengths, store.stride, store.fps),
        ]  # fmt: skip

    def plan(self, step: int) -> list[ClipWindow]:
        """Return the windows of a step, over all processes."""
        rng = random.Random(f"{self.seed}-{step}")
        bucket = rng.choices(self.buckets, weights=[len(b.records) for b in self.buckets])[0]
        length = rng.choice([n for n in self.lengths if n <= bucket.latents.max()])
        records = bucket.draw(rng, self.batch, length)
        return [self._window(rng, record, length) for record in records]

    def _window(self, rng: random.Random, record: Record, length: int) -> ClipWindow:
        starts = (record.latents - length) // self.period
        start = self.period * rng.randint(0, starts)
        area = self.crops.draw(rng, record) if self.crops else None
        return ClipWindow(record=record, start=start, length=length, area=area)


def left_out(store: Store, records: Sequence[Record], why: str) -> list[str]:
    """Return what to say of clips that no step trains on.

    Args:
        store: of the clips.
        records: the clips.
        why: what is the matter with each.
    """
    if not records:
        return []
    named = ", ".join(record.name for record in records[:MOST_NAMED])
    more = ", ..." if len(records) > MOST_NAMED else ""
    return [f"{len(records)} of {len(store.records)} clips of {store.root} {why}: {named}{more}"]


def moved_span(
    name: str, asked: tuple[float, float], lengths: Sequence[int], stride: int, fps: float
) -> list[str]:
    """Return what to say of lengths of windows that are a latent or more from what is asked for.

    Args:
        name: of the field.
        asked: shortest and longest, seconds.
        lengths: those on the grid, in latents, ascending.
        stride: video frames to a latent.
        fps: of the store.
    """
    ends = [latents * stride / fps for latents in (lengths[0], lengths[-1])]
    near = stride / fps + 1e-6
    if all(abs(found - wanted) <= near for found, wanted in zip(ends, asked, strict=True)):
        return []
    return [
        f"{name} asks for {asked[0]:g} to {asked[1]:g} s: on the grid of tokens they are "
        f"{lengths[0]} to {lengths[-1]} latents, {ends[0]:g} to {ends[1]:g} s"
    ]


class WindowPlan(Protocol):
    """Says which windows a step trains on: those of Stage I, or of Stage II."""

    def plan(self, step: int) -> list[ClipWindow]:
        """Return the windows of a step, over all processes."""


class TrainingWindows(WindowPlan, Protocol):
    """Windows that are drawn from the clips of a store, and what is to be said of that."""

    def remarks(self, store: Store) -> list[str]:
        """Return what to say before training: clips that are left out, lengths that were moved."""


class PastEnds(Protocol):
    """Encodes the end of a past anew, for a codec that looks beyond it."""

    def __call__(self, record: Record, history: History, past: int) -> History:
        """Return a window of a clip whose first `past` latents know nothing of what follows."""


@define
class WindowBatches(Dataset[Batch]):
    """The batches of a run by step, for a `torch.utils.data.DataLoader` with `batch_size=None`.

    Attributes:
        windows: what a step's batch is made of.
        ends: for Stage II with a codec that is not causal.
    """

    store: Store
    windows: WindowPlan
    needs: Needs
    steps: int
    rank: int = 0
    world: int = 1
    ends: PastEnds | None = None

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        """Read the samples of a step's batch that are this process's."""
        plan = self.windows.plan(step)
        places = range(len(plan))[self.rank :: self.world]
        windows = [plan[place] for place in places]
        return collate(
            [self._history(window) for window in windows],
            [self._text(window) for window in windows],
            [w.record.id for w in windows],
            places,
            past=plan[0].past,
        )

    def _text(self, window: ClipWindow) -> Text:
        if window.past is None:
            return self.store.text(window.record, window.start, window.length)
        count = window.length - window.past
        return self.store.text_nearest(window.record, window.start + window.past, count)

    def _history(self, window: ClipWindow) -> History:
        rates, pixels = sorted(self.needs.rates), self.needs.pixels
        history = self.store.window(window.record, window.start, window.length, rates, pixels)
        if window.past is not None:
            cuts = self.store.cuts_before(window.record, window.start, window.past)
            history = attrs.evolve(history, cuts=cuts)
        if self.ends and window.past:
            history = self.ends(window.record, history, window.past)
        return crop(history, window.area) if window.area else history
