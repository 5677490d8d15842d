"""Diary: what a run says of itself, the same whether it was stopped in between or not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Self

import torch
from attrs import define, field

from ..data.batch import Batch
from ..data.store import Store
from ..draws import Draws
from .gain import memory_gain
from .log import RunLog
from .optim import learning_rate
from .preview import Previews
from .sharded import asked, rest
from .worker import Worker


@define
class Diary:
    """Averages losses between lines, measures memory_gain, and draws what memory gives back.

    Attributes:
        log: where to; None in processes that do not write.
        previews: what draws pictures.
        losses: of the steps since the last line; they travel in the checkpoint.
        loss: of the last step.
        gain: memory_gain as last measured.
        clock: when the last line was written, by `time.monotonic`.
        paced: steps since then in this process.
    """

    worker: Worker
    log: RunLog | None
    previews: Previews
    losses: list[float] = field(factory=list)
    loss: float | None = None
    gain: float | None = None
    clock: float = 0.0
    paced: int = 0

    @classmethod
    def of(cls, worker: Worker, log: RunLog | None, store: Store, notes: Mapping[str, Any]) -> Self:
        """Give the diary of a run over a store as the notes of its checkpoint left it."""
        previews = Previews.of(worker.experiment, store)
        losses, loss, gain = list(notes.get("losses", [])), notes.get("loss"), notes.get("gain")
        return cls(worker, log, previews, losses, loss, gain)

    def notes(self) -> dict[str, Any]:
        """Give what a checkpoint must hold for the diary to go on."""
        return {"losses": self.losses, "loss": self.loss, "gain": self.gain}

    def begin(self) -> None:
        """Count seconds from now."""
        self.clock = time.monotonic()

    def after(self, step: int, batch: Batch, loss: float) -> None:
        """Write what is due after a step; `batch` is this process's share of it."""
        spec = self.worker.spec
        self.losses.append(loss)
        self.loss = loss
        self.paced += 1
        last = step >= spec.steps
        if step % spec.gain_every == 0 or last:
            self._measure_gain(step, batch)
        if step % spec.log_every == 0 or last:
            self._write(step)

    def close(self) -> None:
        """Flush and close."""
        if self.log:
            self.log.close()

    def _write(self, step: int) -> None:
        now = time.monotonic()
        if self.log:
            rate = learning_rate(self.worker.spec, step - 1)
            mean = sum(self.losses) / len(self.losses)
            self.log.scalars(step, {"loss": mean, "learning_rate": rate})
            self.log.pace(step, {"seconds_a_step": (now - self.clock) / self.paced})
        self.losses, self.clock, self.paced = [], now, 0

    @torch.no_grad()
    def _measure_gain(self, step: int, batch: Batch) -> None:
        """Measure the gain with the weights that users read, on the whole of the step's batch."""
        worker = self.worker
        if batch.history.batch < 2 or not worker.experiment.remembers:
            return
        batch, stage = batch.to(worker.device), worker.stage
        draws = Draws.of(worker.spec.seed, step, batch.places, "gain")
        with worker.shown():
            query = stage.masker(batch.history, batch.text, draws)
            draw = stage.draw(query, draws)
            found = stage.within(lambda: memory_gain(stage, query, draw))
            self._picture(step, batch)
            rest(stage)
        gain, specific = (float(worker.gather(x).mean()) for x in (found.gain, found.specific))
        self.gain = gain
        if self.log:
            self.log.scalars(step, {"memory_gain": gain, "memory_specific": specific})

    def _picture(self, step: int, batch: Batch) -> None:
        stage, model, seed = self.worker.stage, self.worker.model, self.worker.spec.seed
        previews, drawn = self.previews, self.log is not None and self.previews.ready()
        if not drawn and not (asked() and previews.asks):
            return
        # where weights are sharded, all processes must run the same
        found = stage.within(lambda: previews.ask(model, batch, stage.null_text, seed=seed))
        image = previews.draw(found) if drawn else None
        if self.log and image is not None:
            self.log.picture(step, "retrieved below original", image)
