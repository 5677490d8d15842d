"""Strips for the report: some frames of a clip, original above what comes back of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from attrs import frozen
from torch import Tensor

from ..codec import to_bytes
from ..data.record import Record
from ..data.store import Store
from ..errors import UserError
from ..model import Model
from ..registry import nearest
from ..retriever import LatentFrames, Retrieved, Scene
from .prepare import Prepared, evaluating
from .quality import CEILING, Kept, ceiling, one_by_one, original, scene_of, scores
from .result import MeasureResult

ORIGINAL = "original"


@frozen(eq=False, kw_only=True)
class StripRow:
    """One row: what it shows, uint8 frames `[K, 3, P, Q]`, and their mean by metric."""

    label: str
    kind: str
    frames: Tensor
    figures: dict[str, float]


@frozen(eq=False, kw_only=True)
class Strip:
    """Frames of one clip in time; `times` in seconds of the history, one a column."""

    title: str
    caption: str
    note: str
    times: tuple[float, ...]
    rows: tuple[StripRow, ...]


def make_strips(
    model: Model,
    store: Store,
    result: MeasureResult | None = None,
    *,
    clips: int = 4,
    frames: int = 6,
    names: Sequence[str] = (),
    kept: Kept | None = None,
) -> tuple[Strip, ...]:
    """Give strips of some clips: original, ceiling, learned retrievers, and the first floor.

    With a result, clips are taken evenly over the ranks of the main retriever, worst to best;
    without, evenly over the store. Frames are spread evenly over the history and are asked of the
    memory of the clean history together. Each picture is the last video frame of its latent.

    Args:
        model: on its device.
        store: as `measure` takes it.
        result: what `measure` gave.
        clips: how many at most.
        frames: how many of each at most.
        names: of the clips to show instead, in this order.
        kept: what `measure` was given to keep: frames found there are not asked for again.

    Raises:
        UserError: as `measure`; or the store holds no clip of a name.
    """
    with evaluating(model):
        at = Prepared.of(model, store, None if result is None else result.seed)
        chosen = by_name(at, names) if names else choose(at, result, clips)
        return tuple(_strip(at, record, note, frames, kept or {}) for record, note in chosen)


def by_name(at: Prepared, names: Sequence[str]) -> list[tuple[Record, str]]:
    """Give the clips of these names or ids, as `check_names` lets them pass."""
    check_names(at.store, names)
    records = {key: record for record in at.records() for key in (record.id, record.name)}
    return [(records[name], "") for name in names]


def check_names(store: Store, names: Sequence[str]) -> None:
    """Refuse names of clips that the store does not hold.

    Raises:
        UserError: it holds none of a name or id; the message lists its clips, nearest first.
    """
    records = [record for record in store.records if not record.mirror]
    known = {key for record in records for key in (record.id, record.name)}
    for name in names:
        if name not in known:
            near = nearest(name, {record.name for record in records})
            raise UserError(f"{store.root} holds no clip {name!r}; it has {', '.join(near)}")


def choose(at: Prepared, result: MeasureResult | None, count: int) -> list[tuple[Record, str]]:
    """Give clips from worst to best with their ranks, or evenly over the store, and no note."""
    records = {record.id: record for record in at.records()}
    if result is None:
        order = list(records)
        return [(records[order[i]], "") for i in spread_over(len(order), count)]
    metric = result.metrics[0]
    ranked = sorted(
        (row for row in result.clips if row.id in records),
        key=lambda row: metric.merit(row.unmasked[result.main][metric.name]),
    )
    picks = spread_over(len(ranked), count)
    return [(records[ranked[i].id], _rank(i, len(ranked), result.main)) for i in picks]


def spread_over(total: int, count: int) -> list[int]:
    """Give up to `count` numbers below `total`, evenly spread, both ends among them."""
    return sorted(set(torch.linspace(0, total - 1, min(count, total)).round().long().tolist()))


def _rank(index: int, total: int, main: str) -> str:
    if total == 1:
        return "the only clip"
    place = {0: "worst", total - 1: "best"}.get(index, f"number {index + 1} from below")
    return f"{place} of {total} under {main}"


def _strip(at: Prepared, record: Record, note: str, frames: int, kept: Kept) -> Strip:
    scene = scene_of(at, record)
    omega = torch.tensor([spread_over(scene.size.time, frames)], device=at.device)
    seconds = at.codec.stride.time / at.store.fps
    return Strip(
        title=record.name,
        caption=record.caption,
        note=note,
        times=tuple(index * seconds for index in omega[0].tolist()),
        rows=tuple(_rows(at, record, scene, omega, kept)),
    )


def _rows(
    at: Prepared, record: Record, scene: Scene, omega: Tensor, kept: Kept
) -> Iterator[StripRow]:
    stride = at.codec.stride.time
    true = [original(scene.history, i, stride)[-1] for i in omega[0].tolist()]
    shown = torch.stack([(x * 255).round().to(torch.uint8).cpu() for x in true])
    yield StripRow(label=ORIGINAL, kind=ORIGINAL, frames=shown, figures={})
    yield _row(at, scene, omega, ceiling(scene, omega), CEILING, CEILING)
    floors = [name for name, r in at.retrievers.items() if not r.learned]
    for name in [*at.learned, *floors[:1]]:
        given = ask(at, record, name, scene, omega, kept)
        yield _row(at, scene, omega, given, name, "learned" if name in at.learned else "floor")


def ask(
    at: Prepared, record: Record, name: str, scene: Scene, omega: Tensor, kept: Kept
) -> Retrieved:
    """Give the frames Ω by a retriever, out of what was kept where that holds them."""
    if (record.id, name) in kept:
        latents = kept[record.id, name].to(omega.device)
        return LatentFrames(latents=latents[None, :, omega[0]])
    return at.retrievers[name](scene, omega, at.generator(record, "noise"))


def _row(
    at: Prepared, scene: Scene, omega: Tensor, given: Retrieved, label: str, kind: str
) -> StripRow:
    frames = [to_bytes(x[0, :, -1].float()).cpu() for x in one_by_one(scene, omega, given)]
    figures = scores(at, scene, omega, given, label).means()
    return StripRow(label=label, kind=kind, frames=torch.stack(frames), figures=figures)
