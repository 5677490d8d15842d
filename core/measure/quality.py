"""Quality of one clip: what comes back of its frames, compared with the originals."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import attrs
import torch
from attrs import define, field, frozen
from torch import Tensor

from ..data.store import Record
from ..data.windows import Batch, collate
from ..errors import LongtakeError
from ..interfaces.codec import frames_of, to_unit
from ..interfaces.retriever import LatentFrames, Retrieved, Retriever, Scene
from ..interfaces.spec import RetrieverSpec
from ..model import frames_by_latent, make_scene
from ..train.loss import StageOne, shuffled
from ..values.draws import Draws
from ..values.history import History, Query
from ..values.memory import Memory
from ..values.text import Text
from .prepare import QUERIES, Prepared
from .result import GainFigures, Scores, interval, interval_or_none, join

CEILING = "ceiling"
Tick = Callable[[str], None]
Kept = dict[tuple[str, str], Tensor]  # latents `[C, T, H, W]` by clip id and retriever


@define
class ClipQuality:
    """All that was measured of one clip's frames, by retriever.

    Attributes:
        parts: context length of each part of the memory.
        foreign: of the main retriever, from the memory of another clip of this size, if any.
        latents: what learned retrievers gave for the whole window, `[C, T, H, W]`, to be shown.
    """

    parts: dict[str, int] = field(factory=dict)
    unmasked: dict[str, Scores] = field(factory=dict)
    masked: dict[str, Scores] = field(factory=dict)
    foreign: Scores | None = None
    seconds: dict[str, float] = field(factory=dict)
    numbers: dict[str, int | None] = field(factory=dict)
    latents: dict[str, Tensor] = field(factory=dict)

    @property
    def tokens(self) -> int:
        """Context length of the memory."""
        return sum(self.parts.values())


def clip_quality(at: Prepared, record: Record, tick: Tick, *, masked: bool = True) -> ClipQuality:
    """Return the quality of one clip: ceiling and every retriever unmasked, learned ones masked."""
    scene = scene_of(at, record)
    found = ClipQuality(parts={p.name: int(p.tokens.shape[1]) for p in scene.memory.parts})
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
        if retriever.learned and isinstance(given, LatentFrames):
            found.latents[name] = given.latents[0].cpu()
        tick(name)
    found.unmasked.update(_alone(at, record, scene, omega))
    if masked:
        found.masked.update(_masked(at, record, scene, tick))
    return found


def foreign_quality(at: Prepared, record: Record, partner: Record) -> Scores:
    """Return the quality of the main retriever from another clip's memory, at this clip's places."""
    scene, other = scene_of(at, record), at.history(partner, pixels=at.reads_pixels)
    mine = scene.history if at.reads_pixels else attrs.evolve(scene.history, pixels=None)
    both = collate([mine, other], [at.text(record), at.text(partner)], (record.id, partner.id))
    memory = shuffled(at.model.encoder(both.history)).select([0])
    omega = torch.arange(scene.size.time, device=at.device)[None]
    swapped = attrs.evolve(scene, memory=memory)
    given = at.retrievers[at.main](swapped, omega, at.generator(record, "noise"))
    return scores(at, scene, omega, given, f"{at.main} of another clip, {record.name}")


def _alone(at: Prepared, record: Record, scene: Scene, omega: Tensor) -> dict[str, Scores]:
    """Return the quality of the main retriever from each part of the memory alone, if several."""
    parts = scene.memory.parts
    found = {}
    for part in parts if len(parts) > 1 else ():
        less = attrs.evolve(scene, memory=attrs.evolve(scene.memory, parts=(part,)))
        given = at.retrievers[at.main](less, omega, at.generator(record, "noise"))
        name = f"{at.main} of {part.name}"
        found[name] = scores(at, less, omega, given, f"{name}, {record.name}")
    return found


def scene_of(at: Prepared, record: Record) -> Scene:
    """Return the scene of a clip's window, with the memory of the clean history."""
    history = at.history(record, pixels=True)
    batch = Batch(history=history, text=at.text(record), names=(record.id,))
    return make_scene(at.model, at.codec, batch, at.null_text)


def ceiling(scene: Scene, omega: Tensor) -> Retrieved:
    """Return what the codec's own latents would be: no retriever can do better on average."""
    return LatentFrames(latents=scene.history.latents[:, :, omega[0]])


def _masked(at: Prepared, record: Record, scene: Scene, tick: Tick) -> dict[str, Scores]:
    """Return the quality of the frames of masked queries, the same ones for every retriever."""
    draws = Draws.single(at.generator(record, "omega"))
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
    """Return the figures of retrieved frames against the original pixels; `what` names them.

    Raises:
        LongtakeError: a figure is not finite.
    """
    stride, history = at.codec.stride.time, scene.history
    frames = [frame for i in omega[0].tolist() for frame in frames_of(i, stride)]
    values: dict[str, list[Tensor]] = defaultdict(list)
    weights: dict[str, list[Tensor]] = defaultdict(list)
    for latent, shown in zip(omega[0].tolist(), one_by_one(scene, omega, given), strict=True):
        truth = original(history, latent, stride)
        for metric, score in at.metrics.items():
            values[metric].append(score(truth, to_unit(shown[0].float()).movedim(1, 0)).cpu())
            weights[metric].append(score.weight(truth).cpu())
    joined = {metric: torch.cat(parts) for metric, parts in values.items()}
    for metric, value in joined.items():
        if not bool(value.isfinite().all()):
            raise LongtakeError(f"{what}: {metric} is not finite")
    return Scores(
        frames=torch.tensor(frames),
        total=1 + stride * (history.size.time - 1),
        values=joined,
        weights={metric: torch.cat(parts) for metric, parts in weights.items()},
    )


def original(history: History, latent: int, stride: int) -> Tensor:
    """Return the true frames of a latent, `[F, 3, P, Q]` in [0, 1]."""
    assert history.pixels is not None  # windows are read with their pixels
    frames = frames_of(latent, stride)
    return history.pixels[0, :, frames.start : frames.stop].movedim(1, 0).float() / 255


def one_by_one(scene: Scene, omega: Tensor, given: Retrieved) -> Iterator[Tensor]:
    """Yield the pixels of each latent of Ω in turn, so that few are held at a time."""
    latents = scene.history.latents
    if not isinstance(given, LatentFrames):
        yield from frames_by_latent(scene.codec, latents, omega, given)
        return
    for k in range(omega.shape[1]):
        one = LatentFrames(latents=given.latents[:, :, k : k + 1])
        yield from frames_by_latent(scene.codec, latents, omega[:, k : k + 1], one)


# ⟦core/measure/gain.py⟧ memory_gain over clips: the loss with the true memory, another clip's, and none.


@frozen(kw_only=True)
class ClipGain:
    """Losses of one clip, each the mean over the same draws."""

    true: float
    none: float
    shuffled: float | None

    @property
    def gain(self) -> float:
        """Loss without memory minus loss with it."""
        return self.none - self.true

    @property
    def specific(self) -> float | None:
        """Loss with another clip's memory minus loss with the true one."""
        return None if self.shuffled is None else self.shuffled - self.true

    @property
    def foreign(self) -> float | None:
        """Loss with another clip's memory minus loss without any."""
        return None if self.shuffled is None else self.shuffled - self.none


def clip_gain(at: Prepared, record: Record, partner: Record | None) -> ClipGain:
    """Return the losses of one clip under the memory of its clean history, and of `partner`'s.

    Ω, t and noise are drawn as in training; the three memories see the same draws.
    """
    experiment = at.model.experiment
    stage = StageOne(at.model, at.masker, experiment.train, at.null_text)
    mine, text = at.history(record, pixels=at.reads_pixels), at.text(record)
    memories = _memories(at, mine, record, partner)
    draws = Draws.single(at.generator(record, "gain"))
    losses: list[list[float]] = []
    for _ in range(experiment.measure.draws):
        query = clean_query(at, mine, text, draws)
        draw = stage.draw(query, draws)
        losses.append([float(stage.loss(query, memory, draw)) for memory in memories])
    true, none, *other = torch.tensor(losses, dtype=torch.float64).mean(dim=0).tolist()
    return ClipGain(true=true, none=none, shuffled=other[0] if other else None)


def _memories(
    at: Prepared, mine: History, record: Record, partner: Record | None
) -> tuple[Memory, ...]:
    """Return the true memory, none, and where there is a partner its tokens at this clip's places."""
    true = at.model.encoder(mine)  # alone, so that no figure of a clip hangs on another to the bit
    if partner is None:
        return true, Memory()
    other = at.history(partner, pixels=at.reads_pixels)
    names = (record.id, partner.id)
    both = collate([mine, other], [at.text(record), at.text(partner)], names)
    return true, Memory(), shuffled(at.model.encoder(both.history)).select([0])


def clean_query(at: Prepared, history: History, text: Text, draws: Draws) -> Query:
    """Return a query at a random Ω whose history is clean, as in Stage II."""
    query = at.masker.masked(history, text, draws)
    return attrs.evolve(
        query,
        history=history,
        levels=torch.zeros_like(query.levels),
        lr_levels={rate: torch.zeros_like(level) for rate, level in query.lr_levels.items()},
    )


def gain_over_clips(clips: Sequence[ClipGain], draws: int) -> GainFigures:
    """Return the losses and their differences over clips."""
    return GainFigures(
        true=interval([clip.true for clip in clips]),
        none=interval([clip.none for clip in clips]),
        gain=interval([clip.gain for clip in clips]),
        shuffled=interval_or_none([clip.shuffled for clip in clips]),
        specific=interval_or_none([clip.specific for clip in clips]),
        foreign=interval_or_none([clip.foreign for clip in clips]),
        draws=draws,
        alone=sum(clip.shuffled is None for clip in clips),
    )
