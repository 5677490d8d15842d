"""Frames for the report: original beside what comes back, as strips and as sliders through time.

A strip holds a few frames of a clip at full size, a slider many in small. Both are of the memory of
the clean history.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from attrs import frozen
from einops import rearrange
from torch import Tensor

from ..data.store import Record, Store
from ..errors import UserError
from ..interfaces.codec import frame_to_latent, frames_of, to_bytes, to_unit
from ..interfaces.metric import Metric
from ..interfaces.retriever import LatentFrames, Retrieved, Scene
from ..interfaces.spec import MetricSpec
from ..tools.words import names_like
from .prepare import MeasureSetup, evaluating
from .quality import (
    CEILING,
    ceiling,
    clip_scene,
    decode_one_by_one,
    original_frames,
    score_frames,
)
from .result import MeasureResult, MetricInfo

ORIGINAL = "original"
WIDEST = 224  # pixels of a frame of a slider


@frozen(eq=False, kw_only=True)
class StripRow:
    """One row: what it shows, uint8 frames `[K, 3, P, Q]`, and their mean by metric."""

    label: str
    kind: str
    frames: Tensor
    figures: dict[str, float]


@frozen(eq=False, kw_only=True)
class Strip:
    """Frames of one clip in time.

    Attributes:
        title, caption: of the clip; `note` says why it was chosen, "" for no reason.
        times: in seconds of the history, one a column.
        metrics: that the figures of rows are of, in their order.
    """

    title: str
    caption: str
    note: str
    times: tuple[float, ...]
    rows: tuple[StripRow, ...]
    metrics: tuple[MetricInfo, ...]


@frozen(eq=False, kw_only=True)
class SliderPanel:
    """What one retriever gives of a clip: uint8 frames `[K, 3, P, Q]`, small, and a figure each.

    `figures` are of the first metric, at full size; none for the original.
    """

    label: str
    kind: str
    frames: Tensor
    figures: tuple[float, ...]


@frozen(eq=False, kw_only=True)
class TimeSlider:
    """Frames of one clip through time, the same ones in every panel; `times` in seconds."""

    title: str
    caption: str
    note: str
    times: tuple[float, ...]
    panels: tuple[SliderPanel, ...]


def make_strips(
    setup: MeasureSetup,
    result: MeasureResult | None = None,
    *,
    clips: int = 4,
    frames: int = 6,
    names: Sequence[str] = (),
) -> tuple[Strip, ...]:
    """Return strips of some clips: original, ceiling, learned retrievers, and the first floor.

    With a result, clips are taken evenly over the ranks of the main retriever, worst to best;
    without, evenly over the store. Frames are spread evenly over the history and are asked of the
    memory together; what `measure` retrieved is not asked for again. Each picture is the last
    video frame of its latent.

    Args:
        setup: of the model and the store.
        result: what `measure` gave.
        clips: how many at most.
        frames: how many of each at most.
        names: of the clips to show instead, in this order.

    Raises:
        UserError: the store holds no clip of a name, or a file of it is damaged.
    """
    check_names(setup.store, names)
    with evaluating(setup.model):
        chosen = _by_name(setup, names) if names else _choose(setup, result, clips)
        return tuple(_strip(setup, record, note, frames) for record, note in chosen)


def make_sliders(
    setup: MeasureSetup,
    result: MeasureResult | None = None,
    *,
    clips: int = 6,
    frames: int = 40,
) -> tuple[TimeSlider, ...]:
    """Return sliders of some clips: original, main retriever, first sample, and first floor.

    Clips are chosen as by `make_strips`; up to `frames` video frames are spread evenly over the
    history, in small: 224 pixels wide at most.

    Raises:
        UserError: a file of the store is damaged.
    """
    with evaluating(setup.model):
        chosen = _choose(setup, result, clips)
        return tuple(_slider(setup, record, note, frames) for record, note in chosen)


def check_names(store: Store, names: Sequence[str]) -> None:
    """Refuse names of clips that the store does not hold.

    Raises:
        UserError: it holds none of a name or id; the message lists its clips, nearest first.
    """
    records = [record for record in store.records if record.original]
    known = {key for record in records for key in (record.id, record.name)}
    for name in names:
        if name not in known:
            near = names_like(name, {record.name for record in records})
            raise UserError(f"{store.root} holds no clip {name!r}; it has {near}")


def _by_name(setup: MeasureSetup, names: Sequence[str]) -> list[tuple[Record, str]]:
    """Return the clips of these names or ids, which exist, without notes."""
    records = {key: record for record in setup.records() for key in (record.id, record.name)}
    return [(records[name], "") for name in names]


def _choose(
    setup: MeasureSetup, result: MeasureResult | None, count: int
) -> list[tuple[Record, str]]:
    """Return clips from worst to best with their ranks, or evenly over the store without notes."""
    records = {record.id: record for record in setup.records()}
    if result is None:
        ids = list(records)
        return [(records[ids[i]], "") for i in evenly_spaced(len(ids), count)]
    metric = result.metrics[0]
    ranked = sorted(
        (row for row in result.clips if row.id in records),
        key=lambda row: metric.merit(row.unmasked[result.main][metric.name]),
    )
    places = evenly_spaced(len(ranked), count)
    return [(records[ranked[i].id], _rank(i, len(ranked), result.main)) for i in places]


def _rank(index: int, total: int, main: str) -> str:
    if total == 1:
        return "the only clip"
    place = {0: "worst", total - 1: "best"}.get(index, f"number {index + 1} from below")
    return f"{place} of {total} under {main}"


def evenly_spaced(total: int, count: int) -> list[int]:
    """Return up to `count` numbers below `total`, evenly spread, both ends among them."""
    return sorted(set(torch.linspace(0, total - 1, min(count, total)).round().long().tolist()))


def _strip(setup: MeasureSetup, record: Record, note: str, count: int) -> Strip:
    scene = clip_scene(setup, record)
    omega = torch.tensor([evenly_spaced(scene.size.time, count)], device=setup.device)
    seconds = setup.codec.stride.time / setup.store.fps
    return Strip(
        title=record.name,
        caption=record.caption,
        note=note,
        times=tuple(index * seconds for index in omega[0].tolist()),
        rows=tuple(_strip_rows(setup, record, scene, omega)),
        metrics=tuple(setup.infos[name] for name in setup.metrics),
    )


def _strip_rows(
    setup: MeasureSetup, record: Record, scene: Scene, omega: Tensor
) -> Iterator[StripRow]:
    def row(label: str, kind: str, retrieved: Retrieved) -> StripRow:
        pixels = decode_one_by_one(scene, omega, retrieved)
        frames = torch.stack([to_bytes(x[0, :, -1].float()).cpu() for x in pixels])
        figures = score_frames(setup, scene, omega, retrieved, label).means()
        return StripRow(label=label, kind=kind, frames=frames, figures=figures)

    stride = setup.codec.stride.time
    originals = [original_frames(scene.history, i, stride)[-1] for i in omega[0].tolist()]
    frames = torch.stack([(x * 255).round().to(torch.uint8).cpu() for x in originals])
    yield StripRow(label=ORIGINAL, kind=ORIGINAL, frames=frames, figures={})
    yield row(CEILING, CEILING, ceiling(scene, omega))
    for name, kind in [*((name, "learned") for name in setup.learned), *_first_floor(setup)]:
        yield row(name, kind, _retrieve(setup, record, name, scene, omega))


def _first_floor(setup: MeasureSetup) -> list[tuple[str, str]]:
    """Return the first retriever that reads no memory, with its kind, if there is one."""
    floors = [name for name, retriever in setup.retrievers.items() if not retriever.learned]
    return [(name, "floor") for name in floors[:1]]


def _retrieve(
    setup: MeasureSetup, record: Record, name: str, scene: Scene, omega: Tensor
) -> Retrieved:
    """Return the frames Ω by a retriever: those that were measured, where there are any."""
    if (record.id, name) in setup.retrieved:
        latents = setup.retrieved[record.id, name].to(omega.device)
        return LatentFrames(latents=latents[None, :, omega[0]])
    return setup.retrievers[name].retrieve(scene, omega, setup.generator(record, "noise"))


def _slider(setup: MeasureSetup, record: Record, note: str, count: int) -> TimeSlider:
    scene = clip_scene(setup, record)
    stride = setup.codec.stride.time
    frames = evenly_spaced(1 + stride * (scene.size.time - 1), count)
    return TimeSlider(
        title=record.name,
        caption=record.caption,
        note=note,
        times=tuple(frame / setup.store.fps for frame in frames),
        panels=tuple(_slider_panels(setup, record, scene, frames)),
    )


def _slider_panels(
    setup: MeasureSetup, record: Record, scene: Scene, chosen: Sequence[int]
) -> Iterator[SliderPanel]:
    """Yield the panels of a clip, each of the video frames `chosen`."""
    stride = setup.codec.stride.time
    latents = sorted({frame_to_latent(frame, stride) for frame in chosen})
    originals = {
        frame: picture
        for latent in latents
        for frame, picture in zip(
            frames_of(latent, stride), original_frames(scene.history, latent, stride), strict=True
        )
        if frame in chosen
    }
    frames = torch.stack([_small(originals[frame]) for frame in chosen])
    yield SliderPanel(label=ORIGINAL, kind=ORIGINAL, frames=frames, figures=())
    samples = [name for name, retriever in setup.learned.items() if retriever.samples]
    learned = dict.fromkeys([setup.main, *samples[:1]])
    omega = torch.tensor([latents], device=setup.device)
    for name, kind in [*((name, "learned") for name in learned), *_first_floor(setup)]:
        retrieved = _retrieve(setup, record, name, scene, omega)
        yield _slider_panel(setup, name, kind, scene, omega, retrieved, originals)


def _slider_panel(
    setup: MeasureSetup,
    name: str,
    kind: str,
    scene: Scene,
    omega: Tensor,
    retrieved: Retrieved,
    originals: dict[int, Tensor],
) -> SliderPanel:
    metric, stride = next(iter(setup.metrics.values())), setup.codec.stride.time
    frames, figures = [], []
    decoded = decode_one_by_one(scene, omega, retrieved)
    for latent, pixels in zip(omega[0].tolist(), decoded, strict=True):
        pictures = rearrange(to_unit(pixels.float()), "1 c f p q -> f c p q")
        for frame, picture in zip(frames_of(latent, stride), pictures, strict=True):
            if frame in originals:
                frames.append(_small(picture))
                figures.append(_figure(metric, originals[frame], picture))
    shown = tuple(x for x in figures if x is not None)
    shown = shown if len(shown) == len(figures) else ()
    return SliderPanel(label=name, kind=kind, frames=torch.stack(frames), figures=shown)


def _figure(metric: Metric[MetricSpec], original: Tensor, picture: Tensor) -> float | None:
    """Return the figure of one frame; None where a metric fails that did not on whole clips."""
    try:
        value, _ = metric.score(original[None], picture[None])
    except Exception:  # a plugin may raise anything, and a figure is worth no report
        return None
    return float(value[0])


def _small(picture: Tensor) -> Tensor:
    """Return a picture `[3, P, Q]` in [0, 1] as uint8, shrunk to 224 pixels in width if wider."""
    rows, columns = picture.shape[-2:]
    if columns > WIDEST:
        size = (max(1, round(rows * WIDEST / columns)), WIDEST)
        picture = F.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0]
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
