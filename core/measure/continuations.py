"""Stage II over clips: what the memory of the past does to the loss of the video that follows.

Each clip is cut once, as late as it can be: behind its longest past that `finetune.past` allows
lies the longest target of `finetune.target` that has no hard cut in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from attrs import frozen

from ..data.continuations import CutGrid, past_lengths, target_lengths
from ..data.store import Record
from ..data.windows import Batch, ClipWindow, PastEnds, WindowBatches
from ..experiment import FinetuneSpec
from ..model import compressor_needs
from ..train.loss import StageTwo, shuffled
from ..values.draws import Draws
from ..values.grid import shared_period
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
    """

    record: Record
    past: int
    target: int
    losses: ClipGain


def measure_continuations(
    setup: MeasureSetup, finetune: FinetuneSpec, ends: PastEnds | None = None
) -> Iterator[ClipContinuation]:
    """Yield every clip that can be cut, with its losses; all memories see the same t and noise.

    Args:
        setup: what to measure with; its model is evaluating.
        finetune: how clips are cut.
        ends: for a codec that is not causal.
    """
    cuts = [cut for record in setup.records() if (cut := _cut(setup, finetune, record))]
    groups: dict[tuple[int, int, int | None, int], list[ClipWindow]] = defaultdict(list)
    for cut in cuts:
        groups[cut.record.height, cut.record.width, cut.past, cut.length].append(cut)
    for group in groups.values():
        for own, other in zip(group, [*group[1:], group[0]], strict=True):
            yield _measured(setup, finetune, own, None if other is own else other, ends)


def _cut(setup: MeasureSetup, finetune: FinetuneSpec, record: Record) -> ClipWindow | None:
    """Return where a clip is cut; None: it has no place for the shortest past and target."""
    geometry, fps = setup.model.experiment.backbone.geometry, setup.store.fps
    period = shared_period(tuple(compressor_needs(setup.model.experiment).rates))
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
    finetune: FinetuneSpec,
    own: ClipWindow,
    other: ClipWindow | None,
    ends: PastEnds | None,
) -> ClipContinuation:
    experiment = setup.model.experiment
    stage = StageTwo(setup.model, finetune, experiment.train, setup.null_text)
    asked = _read(setup, [own], ends).continuation()
    # Encoded alone, so that no figure of a clip depends on another clip to the bit.
    memories = [setup.model.encoder(asked.history), Memory()]
    if other is not None:
        both = _read(setup, [own, other], ends).continuation()
        memories.append(shuffled(setup.model.encoder(both.history)).select([0]))
    draws = Draws.single(setup.generator(own.record, "continuation"))
    losses: list[list[float]] = []
    for _ in range(experiment.measure.draws):
        drawn = stage.draw_time(asked.target, draws)
        losses.append([float(stage.loss(asked, memory, drawn)) for memory in memories])
    true, none, *foreign = torch.tensor(losses, dtype=torch.float64).mean(dim=0).tolist()
    return ClipContinuation(
        record=own.record,
        past=own.past or 0,
        target=own.length - (own.past or 0),
        losses=ClipGain(true=true, none=none, shuffled=foreign[0] if foreign else None),
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
