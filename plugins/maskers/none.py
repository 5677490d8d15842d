"""No masking: the control."""

from __future__ import annotations

import torch

from ...core.draws import Draws
from ...core.history import History
from ...core.masker import Masker
from ...core.query import Query
from ...core.text import Text
from ..masker_specs import Unmasked
from .omega import choose, frames_at


class NoMasker(Masker[Unmasked]):
    """Asks for Ω of a history that stays clean; what `measure` calls masked is clean here, too."""

    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        """Give the query; only Ω is random.

        Raises:
            UserError: a history of the batch is empty, so that nothing can be asked.
        """
        device = history.latents.device
        omega = choose(self.spec, history.length.cpu(), draws).to(device)
        return Query(
            history=history,
            text=text,
            omega=omega,
            targets=frames_at(history.latents, omega),
            levels=torch.zeros(history.batch, history.size.time, device=device),
            lr_levels={
                rate: torch.zeros(history.batch, x.shape[2], device=device)
                for rate, x in history.lr.items()
            },
        )
