"""Scrubs for the report: a clip in small frames, side by side with what comes back of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor

from ..codec import frame_to_latent, frames_of, to_unit
from ..data.record import Record
from ..data.store import Store
from ..model import Model
from ..retriever import Scene
from .prepare import Prepared, evaluating
from .quality import Kept, one_by_one, original, scene_of
from .result import MeasureResult
from .strips import ORIGINAL, ask, choose, spread_over

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
    """Give scrubs of some clips: original, main retriever, first sample, and first floor.

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
    """Give the retrievers that scrubs show, with their kind: main, first sample, first floor."""
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
    """Give a picture `[3, P, Q]` in [0, 1] as uint8, shrunk to 224 pixels in width if wider."""
    rows, columns = picture.shape[-2:]
    if columns > WIDEST:
        size = (max(1, round(rows * WIDEST / columns)), WIDEST)
        picture = F.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0]
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8).cpu()
