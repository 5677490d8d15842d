"""Strips for the report: some frames of a clip, original above what comes back of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from ..data.store import Record, Store
from ..errors import UserError
from ..interfaces.codec import frame_to_latent, frames_of, to_bytes, to_unit
from ..interfaces.retriever import LatentFrames, Retrieved, Scene
from ..model import Model
from ..registry import nearest
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
    """Return strips of some clips: original, ceiling, learned retrievers, and the first floor.

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
    """Return the clips of these names or ids, as `check_names` lets them pass."""
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
    """Return clips from worst to best with their ranks, or evenly over the store, and no note."""
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
    """Return up to `count` numbers below `total`, evenly spread, both ends among them."""
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
    """Return the frames Ω by a retriever, out of what was kept where that holds them."""
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


# ⟦core/measure/scrubs.py⟧ Scrubs for the report: a clip in small frames, side by side with what comes back of it.


WIDEST = 224  # pixels of a frame


@frozen(eq=False, kw_only=True)
class Panel:
    """What one retriever gives of a clip: uint8 frames `[K, 3, P, Q]`, small, and a figure each.

    `figures` are of the first metric, at full size; none for the original.
    """

    label: str
    kind: str
    frames: Tensor
    figures: tuple[float, ...]


@frozen(eq=False, kw_only=True)
class Scrub:
    """Frames of one clip through time, the same ones in every panel; `times` in seconds."""

    title: str
    caption: str
    note: str
    times: tuple[float, ...]
    panels: tuple[Panel, ...]


def make_scrubs(
    model: Model,
    store: Store,
    result: MeasureResult | None = None,
    *,
    clips: int = 6,
    frames: int = 40,
    kept: Kept | None = None,
) -> tuple[Scrub, ...]:
    """Return scrubs of some clips: original, main retriever, first sample, and first floor.

    Clips are chosen as by `make_strips`; up to `frames` video frames are spread evenly over the
    history, in small: 224 pixels wide at most. All are of the memory of the clean history.

    Raises:
        UserError: as `measure`.
    """
    with evaluating(model):
        at = Prepared.of(model, store, None if result is None else result.seed)
        chosen = choose(at, result, clips)
        return tuple(_scrub(at, record, note, frames, kept or {}) for record, note in chosen)


def _scrub(at: Prepared, record: Record, note: str, count: int, kept: Kept) -> Scrub:
    scene = scene_of(at, record)
    stride = at.codec.stride.time
    chosen = spread_over(1 + stride * (scene.size.time - 1), count)
    return Scrub(
        title=record.name,
        caption=record.caption,
        note=note,
        times=tuple(frame / at.store.fps for frame in chosen),
        panels=tuple(_panels(at, record, scene, chosen, kept)),
    )


def _panels(
    at: Prepared, record: Record, scene: Scene, chosen: list[int], kept: Kept
) -> Iterator[Panel]:
    stride = at.codec.stride.time
    latents = sorted({frame_to_latent(frame, stride) for frame in chosen})
    true = {
        frame: picture
        for latent in latents
        for frame, picture in zip(
            frames_of(latent, stride), original(scene.history, latent, stride), strict=True
        )
    }
    shown = torch.stack([small(true[frame]) for frame in chosen])
    yield Panel(label=ORIGINAL, kind=ORIGINAL, frames=shown, figures=())
    omega = torch.tensor([latents], device=at.device)
    for name, kind in shown_names(at):
        given = ask(at, record, name, scene, omega, kept)
        pixels = zip(latents, one_by_one(scene, omega, given), strict=True)
        yield _panel(at, name, kind, pixels, {frame: true[frame] for frame in chosen})


def shown_names(at: Prepared) -> list[tuple[str, str]]:
    """Return the retrievers that scrubs show, with their kind: main, first sample, first floor."""
    samples = [name for name, retriever in at.learned.items() if retriever.samples]
    floors = [name for name, retriever in at.retrievers.items() if not retriever.learned]
    learned = list(dict.fromkeys([at.main, *samples[:1]]))
    return [(name, "learned") for name in learned] + [(name, "floor") for name in floors[:1]]


def _panel(
    at: Prepared,
    name: str,
    kind: str,
    pixels: Iterator[tuple[int, Tensor]],
    true: dict[int, Tensor],
) -> Panel:
    metric, frames, figures = next(iter(at.metrics.values())), [], []
    for latent, given in pixels:
        pictures = to_unit(given[0].float()).movedim(1, 0)
        for frame, picture in zip(frames_of(latent, at.codec.stride.time), pictures, strict=True):
            if frame in true:
                frames.append(small(picture))
                figures.append(float(metric(true[frame][None], picture[None])[0]))
    return Panel(label=name, kind=kind, frames=torch.stack(frames), figures=tuple(figures))


def small(picture: Tensor) -> Tensor:
    """Return a picture `[3, P, Q]` in [0, 1] as uint8, shrunk to 224 pixels in width if wider."""
    rows, columns = picture.shape[-2:]
    if columns > WIDEST:
        size = (max(1, round(rows * WIDEST / columns)), WIDEST)
        picture = F.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0]
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
