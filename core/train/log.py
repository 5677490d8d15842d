"""What a run writes down: metrics.jsonl, pace.jsonl, TensorBoard scalars and pictures."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from attrs import define, field, frozen
from torch import Tensor

from ..data.store import Store
from ..data.windows import Batch
from ..errors import UserError
from ..experiment import Experiment
from ..interfaces.codec import Codec
from ..interfaces.retriever import LatentFrames, Retrieved
from ..interfaces.spec import CodecSpec
from ..model import Model, build_retriever, last_frames, learned_retriever, make_scene
from ..registry import build
from ..tools.files import append_line, read_lines, whole_file
from ..values.draws import Draws
from ..values.text import Text
from .distributed import asked, rest
from .loss import memory_gain
from .optim import learning_rate
from .worker import Worker

METRICS = "metrics.jsonl"  # the same to the byte, however often the run was stopped
PACE = "pace.jsonl"  # seconds, which are never the same


class RunLog:
    """Logs scalars and pictures of a run; on resume, what came after the checkpoint is dropped."""

    def __init__(self, run: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        for name in (METRICS, PACE):
            _rewind(run / name, step)
        self.board: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log figures of a step that follow from the experiment alone."""
        self._write(METRICS, step, values)

    def pace(self, step: int, values: dict[str, float]) -> None:
        """Log how fast this machine went."""
        self._write(PACE, step, values)

    def _write(self, file: str, step: int, values: dict[str, float]) -> None:
        append_line(self.run / file, {"step": step, **values})
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """Log a picture, uint8 `[3, P, Q]`."""
        self.board.add_image(name, image, step)

    def close(self) -> None:
        """Flush and close."""
        self.board.close()


def _rewind(path: Path, step: int) -> None:
    kept = [line for line in read_lines(path) if line["step"] <= step]
    with whole_file(path) as part:
        part.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept), encoding="utf-8"
        )


# ⟦core/train/preview.py⟧ Pictures of what a model gives back while it trains: originals above, retrieved frames below.


FRAMES = 4


@frozen(eq=False, kw_only=True)
class Asked:
    """What was retrieved for a picture: frames Ω `[1, K]` of true `latents` `[1, C, T, H, W]`."""

    latents: Tensor
    omega: Tensor
    found: Retrieved


@define
class Previews:
    """Draws what memory gives back, with one codec for a run.

    Weights of the codec are loaded at the first picture and wait on the CPU for the next. Training
    does not need them, so where they are not on this machine, or cannot be used, there are no
    pictures: that is said once.

    Attributes:
        asks: whether a retriever of the experiment reads memory: the same in all processes.
        lacks: why this process has no pictures; "": it has.
        said: whether that was said.
    """

    codec: Codec[CodecSpec]
    asks: bool = True
    lacks: str = ""
    said: bool = False

    @classmethod
    def of(cls, experiment: Experiment, store: Store) -> Self:
        """Prepare the pictures of a run over a store; nothing is loaded yet."""
        codec: Codec[CodecSpec] = build(experiment.backbone.codec)
        store.teach(codec)
        try:
            learned_retriever(experiment)
        except UserError as error:
            return cls(codec, asks=False, lacks=str(error))
        here = codec.at_hand
        return cls(codec, lacks="" if here else "the codec's weights are not on this machine")

    def ready(self) -> bool:
        """Whether a picture can be drawn; the first time that it cannot, say so."""
        if self.lacks and not self.said:
            self.said = True
            logging.getLogger(__name__).warning("no pictures of retrieved frames: %s", self.lacks)
        return not self.lacks

    @torch.no_grad()
    def ask(self, model: Model, batch: Batch, null_text: Text, *, seed: int) -> Asked:
        """Retrieve four frames of the batch's first sample, spread evenly over its window.

        The memory is that of the clean history.
        """
        history = batch.history.select([0])
        self.codec.to(history.latents.device)
        last = history.size.time - 1
        omega = torch.linspace(0, last, min(FRAMES, last + 1)).round().long().unique()[None]
        scene = make_scene(model, self.codec, batch, null_text)
        generator = torch.Generator().manual_seed(seed)
        found = build_retriever(learned_retriever(model.experiment))(scene, omega, generator)
        return Asked(latents=history.latents, omega=omega, found=found)

    @torch.no_grad()
    def draw(self, asked: Asked) -> Tensor | None:
        """Return the frames below their originals, uint8 `[3, P, Q]`; None where decoding fails.

        A picture is worth no run: what fails here, as for want of memory, ends the pictures alone.
        """
        latents, omega = asked.latents, asked.omega
        truth = LatentFrames(latents=latents[:, :, omega[0].to(latents.device)])
        try:
            rows = [last_frames(self.codec, latents, omega, x) for x in (truth, asked.found)]
        except (UserError, torch.OutOfMemoryError) as error:
            self.lacks = str(error).partition("\n")[0]
            self.ready()
            return None
        finally:
            self.codec.to("cpu")
        return torch.cat(rows, dim=1)


# ⟦core/train/diary.py⟧ Diary: what a run says of itself, the same whether it was stopped in between or not.


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
        """Return the diary of a run over a store as the notes of its checkpoint left it."""
        previews = Previews.of(worker.experiment, store)
        losses, loss, gain = list(notes.get("losses", [])), notes.get("loss"), notes.get("gain")
        return cls(worker, log, previews, losses, loss, gain)

    def notes(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for the diary to go on."""
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
