"""Quality of one clip: what comes back of its frames, compared with the originals."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import attrs
import torch
from attrs import define, field
from torch import Tensor

from ..codec import frames_of, to_unit
from ..data.batch import Batch
from ..data.record import Record
from ..errors import LongtakeError
from ..history import History
from ..retriever import LatentFrames, Retrieved, Retriever, Scene
from ..scene import frames_by_latent, make_scene
from ..spec import RetrieverSpec
from .prepare import QUERIES, Prepared
from .scores import Scores, join

CEILING = "ceiling"
Tick = Callable[[str], None]


@define
class ClipQuality:
    """All that was measured of one clip's frames, by retriever."""

    tokens: int = 0
    unmasked: dict[str, Scores] = field(factory=dict)
    masked: dict[str, Scores] = field(factory=dict)
    seconds: dict[str, float] = field(factory=dict)
    numbers: dict[str, int | None] = field(factory=dict)


def clip_quality(at: Prepared, record: Record, tick: Tick) -> ClipQuality:
    """Give the quality of one clip: ceiling and every retriever unmasked, learned ones masked."""
    scene = scene_of(at, record)
    found = ClipQuality(tokens=scene.memory.length)
    omega = torch.arange(scene.size.time, device=at.device)[None]
    found.unmasked[CEILING] = scores(
        at, scene, omega, ceiling(scene, omega), f"{CEILING}, {record.name}"
    )
    tick(CEILING)
    for name, retriever in at.retrievers.items():
        given, seconds = _timed(at, record, retriever, scene, omega)
        found.seconds[name] = seconds / omega.shape[1]
        found.numbers[name] = retriever.numbers(scene)
        found.unmasked[name] = scores(at, scene, omega, given, f"{name}, {record.name}")
        tick(name)
    found.masked.update(_masked(at, record, scene, tick))
    return found


def scene_of(at: Prepared, record: Record) -> Scene:
    """Give the scene of a clip's window, with the memory of the clean history."""
    history = at.history(record, pixels=True)
    batch = Batch(history=history, text=at.text(record), names=(record.id,))
    return make_scene(at.model, at.codec, batch, at.null_text)


def ceiling(scene: Scene, omega: Tensor) -> Retrieved:
    """Give what the codec's own latents would be: no retriever can do better on average."""
    return LatentFrames(latents=scene.history.latents[:, :, omega[0]])


def _masked(at: Prepared, record: Record, scene: Scene, tick: Tick) -> dict[str, Scores]:
    """Give the quality of the frames of masked queries, the same ones for every retriever."""
    draws = at.generator(record, "omega")
    history = scene.history if at.reads_pixels else attrs.evolve(scene.history, pixels=None)
    parts: dict[str, list[Scores]] = defaultdict(list)
    for number in range(QUERIES):
        query = at.masker.masked(history, scene.text, draws)
        hidden = attrs.evolve(scene, memory=at.model.encoder(query.history))
        for name, retriever in at.learned.items():
            given = retriever(hidden, query.omega, at.generator(record, f"noise {number}"))
            parts[name].append(scores(at, scene, query.omega, given, f"{name}, {record.name}"))
        tick("masked")
    return {name: join(several) for name, several in parts.items()}


def _timed(
    at: Prepared,
    record: Record,
    retriever: Retriever[RetrieverSpec],
    scene: Scene,
    omega: Tensor,
) -> tuple[Retrieved, float]:
    generator = at.generator(record, "noise")
    _wait(at.device)
    began = time.perf_counter()
    given = retriever(scene, omega, generator)
    _wait(at.device)
    return given, time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def scores(at: Prepared, scene: Scene, omega: Tensor, given: Retrieved, what: str) -> Scores:
    """Give the figures of retrieved frames against the original pixels; `what` names them.

    Raises:
        LongtakeError: a figure is not finite.
    """
    stride, history = at.codec.stride.time, scene.history
    frames = [frame for i in omega[0].tolist() for frame in frames_of(i, stride)]
    values: dict[str, list[Tensor]] = defaultdict(list)
    for latent, shown in zip(omega[0].tolist(), one_by_one(scene, omega, given), strict=True):
        truth = original(history, latent, stride)
        for metric, score in at.metrics.items():
            values[metric].append(score(truth, to_unit(shown[0].float()).movedim(1, 0)).cpu())
    joined = {metric: torch.cat(parts) for metric, parts in values.items()}
    for metric, value in joined.items():
        if not bool(value.isfinite().all()):
            raise LongtakeError(f"{what}: {metric} is not finite")
    total = 1 + stride * (history.size.time - 1)
    return Scores(frames=torch.tensor(frames), total=total, values=joined)


def original(history: History, latent: int, stride: int) -> Tensor:
    """Give the true frames of a latent, `[F, 3, P, Q]` in [0, 1]."""
    assert history.pixels is not None  # windows are read with their pixels
    frames = frames_of(latent, stride)
    return history.pixels[0, :, frames.start : frames.stop].movedim(1, 0).float() / 255


def one_by_one(scene: Scene, omega: Tensor, given: Retrieved) -> Iterator[Tensor]:
    """Give the pixels of each latent of Ω in turn, so that few are held at a time."""
    latents = scene.history.latents
    if not isinstance(given, LatentFrames):
        yield from frames_by_latent(scene.codec, latents, omega, given)
        return
    for k in range(omega.shape[1]):
        one = LatentFrames(latents=given.latents[:, :, k : k + 1])
        yield from frames_by_latent(scene.codec, latents, omega[:, k : k + 1], one)
