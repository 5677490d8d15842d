"""memory_gain over clips: the loss with the true memory, another clip's, and none."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from attrs import frozen

from ..data.batch import collate
from ..data.record import Record
from ..draws import Draws
from ..history import History
from ..memory import Memory
from ..query import Query
from ..text import Text
from ..train.gain import shuffled
from ..train.stage import StageOne
from .figures import interval, interval_or_none
from .prepare import Prepared
from .result import GainFigures


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
    """Give the losses of one clip under the memory of its clean history, and of `partner`'s.

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
    """Give the true memory, none, and where there is a partner its tokens at this clip's places."""
    true = at.model.encoder(mine)  # alone, so that no figure of a clip hangs on another to the bit
    if partner is None:
        return true, Memory()
    other = at.history(partner, pixels=at.reads_pixels)
    names = (record.id, partner.id)
    both = collate([mine, other], [at.text(record), at.text(partner)], names)
    return true, Memory(), shuffled(at.model.encoder(both.history)).select([0])


def clean_query(at: Prepared, history: History, text: Text, draws: Draws) -> Query:
    """Give a query at a random Ω whose history is clean, as in Stage II."""
    query = at.masker.masked(history, text, draws)
    return attrs.evolve(
        query,
        history=history,
        levels=torch.zeros_like(query.levels),
        lr_levels={rate: torch.zeros_like(level) for rate, level in query.lr_levels.items()},
    )


def gain_over_clips(clips: Sequence[ClipGain], draws: int) -> GainFigures:
    """Give the losses and their differences over clips."""
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
