"""Quality of one clip: what comes back of its frames, and what its memory does to the loss."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence

import attrs
import torch
from attrs import define, field, frozen
from einops import rearrange
from torch import Tensor

from ..data.store import Record
from ..data.windows import Batch, collate
from ..errors import LongtakeError, PluginError, plugin_label
from ..interfaces.codec import frames_of, to_unit
from ..interfaces.metric import Metric
from ..interfaces.retriever import LatentFrames, Retrieved, Retriever, Scene
from ..interfaces.spec import MetricSpec, RetrieverSpec
from ..model import frames_by_latent, make_scene
from ..train.loss import DATA, FiniteLog, StageOne, shuffled
from ..values.draws import Draws
from ..values.history import History, Query
from ..values.memory import Memory
from ..values.text import Text
from .prepare import MeasureSetup
from .result import FrameScores, GainFigures, interval, interval_or_none, join_scores

CEILING = "ceiling"  # the name of what the codec alone would give
QUERIES = 6  # masked queries for each clip
Tick = Callable[[str], None]


@define
class ClipQuality:
    """All that was measured of one clip's frames, by retriever.

    Attributes:
        parts: context length of each part of the memory.
        unmasked: of all frames, from the memory of the clean history.
        masked: of the Ω of masked queries, from the memory of what they leave of the history.
        foreign: of the main retriever, from the memory of another clip of this size, if any.
        seconds: that one latent frame took, not decoded.
        numbers: how many numbers the clip is kept as, where it is known.
        latents: what learned retrievers gave for the whole window, `[C, T, H, W]` on the CPU.
    """

    parts: dict[str, int] = field(factory=dict)
    unmasked: dict[str, FrameScores] = field(factory=dict)
    masked: dict[str, FrameScores] = field(factory=dict)
    foreign: FrameScores | None = None
    seconds: dict[str, float] = field(factory=dict)
    numbers: dict[str, int | None] = field(factory=dict)
    latents: dict[str, Tensor] = field(factory=dict)

    def keep_metrics(self, metrics: Collection[str]) -> None:
        """Drop the scores by all other metrics: those that failed on a later clip."""
        for by_name in (self.unmasked, self.masked):
            by_name.update({name: scores.only(metrics) for name, scores in by_name.items()})
        self.foreign = self.foreign and self.foreign.only(metrics)

    @property
    def tokens(self) -> int:
        """Context length of the memory."""
        return sum(self.parts.values())


def clip_quality(
    setup: MeasureSetup,
    record: Record,
    tick: Tick,
    *,
    foreign: Memory | None = None,
    masked: bool = True,
) -> ClipQuality:
    """Measure one clip: ceiling and every retriever unmasked, learned ones masked, too.

    Args:
        setup: what to measure with.
        record: the clip.
        tick: called with a note after each part of the work.
        foreign: another clip's memory, for the main retriever to read as well.
        masked: whether to ask masked queries.

    Raises:
        LongtakeError: a figure is not finite; the message names retriever and clip.
    """
    scene, main = clip_scene(setup, record), setup.main
    omega = torch.arange(scene.size.time, device=setup.device)[None]

    def scored(name: str, retrieved: Retrieved) -> FrameScores:
        return score_frames(setup, scene, omega, retrieved, f"{name}, {record.name}")

    def by_main(memory: Memory) -> Retrieved:
        swapped = attrs.evolve(scene, memory=memory)
        return setup.retrievers[main].retrieve(swapped, omega, setup.generator(record, "noise"))

    parts = scene.memory.parts
    quality = ClipQuality(parts={part.name: int(part.tokens.shape[1]) for part in parts})
    quality.unmasked[CEILING] = scored(CEILING, ceiling(scene, omega))
    tick(CEILING)
    for name, retriever in setup.retrievers.items():
        retrieved, seconds = _timed(setup, record, retriever, scene, omega)
        quality.seconds[name] = seconds / omega.shape[1]
        quality.numbers[name] = retriever.numbers(scene)
        quality.unmasked[name] = scored(name, retrieved)
        if retriever.learned and isinstance(retrieved, LatentFrames):
            quality.latents[name] = retrieved.latents[0].cpu()
        tick(name)
    for part in parts if len(parts) > 1 else ():
        name = f"{main} of {part.name}"
        alone = attrs.evolve(scene.memory, parts=(part,))
        quality.unmasked[name] = scored(name, by_main(alone))
    if masked:
        quality.masked = _masked_quality(setup, record, scene, tick)
    if foreign is not None:
        quality.foreign = scored(f"{main} of another clip", by_main(foreign))
    return quality


def clip_scene(setup: MeasureSetup, record: Record) -> Scene:
    """Return the scene of a clip's window, with the memory of the clean history."""
    history = setup.history(record, pixels=True)
    batch = Batch(history=history, text=setup.text(record), names=(record.id,))
    return make_scene(setup.model, setup.codec, batch, setup.null_text)


def foreign_memory(setup: MeasureSetup, record: Record, partner: Record) -> Memory:
    """Return the memory of another clip of the same size, its tokens at the places of this one."""
    clips = (record, partner)
    both = collate(
        [setup.history(clip, pixels=setup.reads_pixels) for clip in clips],
        [setup.text(clip) for clip in clips],
        [clip.id for clip in clips],
    )
    return shuffled(setup.model.encoder(both.history)).select([0])


def ceiling(scene: Scene, omega: Tensor) -> Retrieved:
    """Return the codec's own latents of Ω: no retriever can do better on average."""
    return LatentFrames(latents=scene.history.latents[:, :, omega[0]])


def _timed(
    setup: MeasureSetup,
    record: Record,
    retriever: Retriever[RetrieverSpec],
    scene: Scene,
    omega: Tensor,
) -> tuple[Retrieved, float]:
    """Return what a retriever gives for Ω, and the seconds that it took."""
    generator = setup.generator(record, "noise")
    _wait(setup.device)
    began = time.perf_counter()
    retrieved = retriever.retrieve(scene, omega, generator)
    _wait(setup.device)
    return retrieved, time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _masked_quality(
    setup: MeasureSetup, record: Record, scene: Scene, tick: Tick
) -> dict[str, FrameScores]:
    """Return the scores of the frames of masked queries, the same ones for every retriever."""
    draws = Draws.single(setup.generator(record, "omega"))
    history = scene.history if setup.reads_pixels else attrs.evolve(scene.history, pixels=None)
    scores: dict[str, list[FrameScores]] = defaultdict(list)
    for number in range(QUERIES):
        query = setup.masker.query(history, scene.text, draws, certain=True)
        masked = attrs.evolve(scene, memory=setup.model.encoder(query.history))
        for name, retriever in setup.learned.items():
            generator = setup.generator(record, f"noise {number}")
            retrieved = retriever.retrieve(masked, query.omega, generator)
            what = f"{name}, {record.name}"
            scores[name].append(score_frames(setup, scene, query.omega, retrieved, what))
        tick("masked")
    return {name: join_scores(queries) for name, queries in scores.items()}


def score_frames(
    setup: MeasureSetup, scene: Scene, omega: Tensor, retrieved: Retrieved, what: str
) -> FrameScores:
    """Return the scores of the retrieved frames of Ω against the original pixels.

    Args:
        setup: holds the metrics.
        scene: of the clip; its history has pixels.
        omega: latent frames `[1, K]`.
        retrieved: what a retriever gave for them.
        what: names retriever and clip in the error.

    Raises:
        LongtakeError: a frame is not finite, or the last metric failed; another that fails leaves
            `setup.metrics`, and the scores.
    """
    stride, history = setup.codec.stride.time, scene.history
    latents: list[int] = omega[0].tolist()
    values: dict[str, list[Tensor]] = defaultdict(list)
    weights: dict[str, list[Tensor]] = defaultdict(list)
    for latent, pixels in zip(latents, decode_one_by_one(scene, omega, retrieved), strict=True):
        original = original_frames(history, latent, stride)
        frames = rearrange(to_unit(pixels.float()), "1 c f p q -> f c p q")
        if not bool(frames.isfinite().all()):
            maker = _not_finite_maker(setup, scene, retrieved, what)
            raise LongtakeError(f"{what}: {next(iter(setup.metrics))} is not finite: {maker}")
        for name, metric in list(setup.metrics.items()):
            try:
                value, weight = metric.score(original, frames)
                _check_finite(metric, value, weight, what)
            except Exception as error:  # a plugin may raise anything: the other metrics go on
                setup.fail(name, error)
                continue
            values[name].append(value.cpu())
            weights[name].append(weight.cpu())
    joined = {name: torch.cat(values[name]) for name in setup.metrics}
    return FrameScores(
        frames=torch.tensor([frame for i in latents for frame in frames_of(i, stride)]),
        total=1 + stride * (history.size.time - 1),
        values=joined,
        weights={name: torch.cat(weights[name]) for name in setup.metrics},
    )


def _check_finite(metric: Metric[MetricSpec], value: Tensor, weight: Tensor, what: str) -> None:
    """Raise PluginError if a figure of frames that are finite is none, or a weight is not > 0."""
    if not bool(value.isfinite().all()):
        raise PluginError(f"{plugin_label(metric)}: its figure is not finite for {what}")
    if not bool((weight.isfinite() & (weight > 0)).all()):
        raise PluginError(f"{plugin_label(metric)}: a weight is not above 0 for {what}")


def _not_finite_maker(setup: MeasureSetup, scene: Scene, retrieved: Retrieved, what: str) -> str:
    """Return who made the frames that are not finite, in words."""
    encoder, name = setup.model.encoder, what.partition(",")[0]
    log = FiniteLog()
    log.add(DATA, scene.history.latents, *scene.history.lr.values())
    log.add_memory(encoder, scene.memory)
    retriever: object = setup.retrievers.get(name.partition(" of ")[0], name)
    log.add(
        retriever, retrieved.latents if isinstance(retrieved, LatentFrames) else retrieved.pixels
    )
    maker = log.first_bad() or setup.codec
    return f"{maker if isinstance(maker, str) else plugin_label(maker)} made it so"


def original_frames(history: History, latent: int, stride: int) -> Tensor:
    """Return the original frames that a latent stands for, `[F, 3, P, Q]` in [0, 1]."""
    assert history.pixels is not None  # windows are read with their pixels
    frames = frames_of(latent, stride)
    pixels = history.pixels[:, :, frames.start : frames.stop]
    return rearrange(pixels, "1 c f p q -> f c p q").float() / 255


def decode_one_by_one(scene: Scene, omega: Tensor, retrieved: Retrieved) -> Iterator[Tensor]:
    """Yield the pixels of each latent of Ω, `[1, 3, f, P, Q]` in [−1, 1], few held at a time."""
    latents = scene.history.latents
    if not isinstance(retrieved, LatentFrames):
        yield from frames_by_latent(scene.codec, latents, omega, retrieved)
        return
    for k in range(omega.shape[1]):
        one = LatentFrames(latents=retrieved.latents[:, :, k : k + 1])
        yield from frames_by_latent(scene.codec, latents, omega[:, k : k + 1], one)


@frozen(kw_only=True)
class ClipGain:
    """Losses of one clip, each the mean over the same draws: `memory_gain` and what explains it.

    Attributes:
        true, none, shuffled: with the clip's own memory, without any, and with another clip's
            (None where no other has its size).
    """

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


def clip_gain(setup: MeasureSetup, record: Record, foreign: Memory | None) -> ClipGain:
    """Measure the losses of one clip with the memory of its clean history, none, and `foreign`.

    Ω, t and noise are drawn as in training; all memories see the same draws.
    """
    experiment = setup.model.experiment
    stage = StageOne(setup.model, setup.masker, experiment.train, setup.null_text)
    history, text = setup.history(record, pixels=setup.reads_pixels), setup.text(record)
    # Encoded alone, so that no figure of a clip depends on another clip to the bit.
    memories = [setup.model.encoder(history), Memory()]
    memories += [] if foreign is None else [foreign]
    draws = Draws.single(setup.generator(record, "gain"))
    losses: list[list[float]] = []
    for _ in range(experiment.measure.draws):
        query = clean_query(setup, history, text, draws)
        noise = stage.draw_noise(query, draws)
        losses.append([float(stage.loss(query, memory, noise)) for memory in memories])
    true, none, *other = torch.tensor(losses, dtype=torch.float64).mean(dim=0).tolist()
    return ClipGain(true=true, none=none, shuffled=other[0] if other else None)


def clean_query(setup: MeasureSetup, history: History, text: Text, draws: Draws) -> Query:
    """Return a query at a random Ω whose history is clean, as in Stage II."""
    query = setup.masker.query(history, text, draws, certain=True)
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
