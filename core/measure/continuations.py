"""Stage II over clips: what the memory of the past does to the loss of the video that follows.

Each clip is cut once, as late as it can be: behind its longest past that `finetune.past` allows
lies the longest target of `finetune.target` that has no hard cut in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Self

import torch
from attrs import frozen

from ..data.continuations import CutGrid, past_lengths, target_lengths
from ..data.store import Record
from ..data.windows import Batch, ClipWindow, PastEnds, WindowBatches
from ..experiment import Experiment, FinetuneSpec, TrainSpec
from ..model import compressor_needs
from ..train.loss import StageTwo, shuffled
from ..values.draws import Draws
from ..values.grid import shared_period
from ..values.history import History
from ..values.memory import Memory
from .prepare import MeasureSetup
from .quality import ClipGain


@frozen(eq=False, kw_only=True)
class ClipContinuation:
    """How one clip goes on.

    Attributes:
        record: the clip.
        past, target: the lengths that it was cut into, latents.
        losses: of the target with the memory of the past, with none, and with another clip's.
        window: the loss with a window of the newest latents alone; None: not asked for.
    """

    record: Record
    past: int
    target: int
    losses: ClipGain
    window: float | None = None


@frozen(kw_only=True)
class Alike:
    """What several models share, so that all of them are asked for the same, of the same noise.

    Attributes:
        period: clips are cut at latents 1 mod it.
        train: whose times t and weights of channels the loss has.
        draws: of t and noise a clip.
    """

    period: int
    train: TrainSpec
    draws: int

    @classmethod
    def of(cls, experiment: Experiment) -> Self:
        """Return how one model alone is asked."""
        return cls(
            period=shared_period(tuple(compressor_needs(experiment).rates)),
            train=experiment.train,
            draws=experiment.measure.draws,
        )


def measure_continuations(
    setup: MeasureSetup,
    finetune: FinetuneSpec,
    ends: PastEnds | None = None,
    *,
    alike: Alike | None = None,
    window: Callable[[History], Memory] | None = None,
) -> Iterator[ClipContinuation]:
    """Yield every clip that can be cut, with its losses; all memories see the same t and noise.

    Args:
        setup: what to measure with; its model is evaluating.
        finetune: how clips are cut.
        ends: for a codec that is not causal.
        alike: what several models share; None: it is asked alone.
        window: makes a memory of the newest latents, to be asked of, too.
    """
    alike = alike or Alike.of(setup.model.experiment)
    cuts = [
        cut for record in setup.records() if (cut := _cut(setup, finetune, record, alike.period))
    ]
    groups: dict[tuple[int, int, int | None, int], list[ClipWindow]] = defaultdict(list)
    for cut in cuts:
        groups[cut.record.height, cut.record.width, cut.past, cut.length].append(cut)
    stage = StageTwo(setup.model, finetune, alike.train, setup.null_text)
    for group in groups.values():
        for own, other in zip(group, [*group[1:], group[0]], strict=True):
            partner = None if other is own else other
            yield _measured(setup, stage, own, partner, ends, alike.draws, window)


def _cut(
    setup: MeasureSetup, finetune: FinetuneSpec, record: Record, period: int
) -> ClipWindow | None:
    """Return where a clip is cut; None: it has no place for the shortest past and target."""
    geometry, fps = setup.model.experiment.backbone.geometry, setup.store.fps
    grid = CutGrid(period=period, stride=setup.store.stride, cuts_inside=finetune.cuts_inside)
    pasts = past_lengths(finetune.past, geometry, fps, period)
    for target in reversed(target_lengths(finetune.target, geometry, fps, period)):
        if places := grid.legal(record, target, least=pasts[0]):
            past = max(n for n in pasts if n <= places[-1])
            start = places[-1] - past
            return ClipWindow(record=record, start=start, length=past + target, past=past)
    return None


def _measured(
    setup: MeasureSetup,
    stage: StageTwo,
    own: ClipWindow,
    other: ClipWindow | None,
    ends: PastEnds | None,
    draws: int,
    window: Callable[[History], Memory] | None,
) -> ClipContinuation:
    asked = _read(setup, [own], ends).continuation()
    # Encoded alone, so that no figure of a clip depends on another clip to the bit.
    memories = {"true": setup.model.encoder(asked.history), "none": Memory()}
    if other is not None:
        both = _read(setup, [own, other], ends).continuation()
        memories["shuffled"] = shuffled(setup.model.encoder(both.history)).select([0])
    if window is not None:
        memories["window"] = window(asked.history)
    drawing = Draws.single(setup.generator(own.record, "continuation"))
    losses: list[list[float]] = []
    for _ in range(draws):
        drawn = stage.draw_time(asked.target, drawing)
        losses.append([float(stage.loss(asked, one, drawn)) for one in memories.values()])
    means = torch.tensor(losses, dtype=torch.float64).mean(dim=0).tolist()
    found = dict(zip(memories, means, strict=True))
    return ClipContinuation(
        record=own.record,
        past=own.past or 0,
        target=own.length - (own.past or 0),
        losses=ClipGain(true=found["true"], none=found["none"], shuffled=found.get("shuffled")),
        window=found.get("window"),
    )


@frozen
class _Given:
    """Windows that are given, as what draws them for a batch."""

    windows: list[ClipWindow]

    def plan(self, step: int) -> list[ClipWindow]:
        """Return them."""
        return self.windows


def _read(setup: MeasureSetup, windows: list[ClipWindow], ends: PastEnds | None) -> Batch:
    """Return windows of one past and target as training reads them, on the model's device."""
    needs = compressor_needs(setup.model.experiment)
    batches = WindowBatches(setup.store, _Given(windows), needs, 1, ends=ends)
    return batches[0].to(setup.device)
