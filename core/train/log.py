"""What a run writes down: metrics.jsonl, pace.jsonl, TensorBoard scalars and pictures.

`MetricsLogger` decides what is due after a step, `LogWriter` writes it, `Previews` draws what the
memory gives back, or in Stage II how the model goes on: originals above, frames of its own below.
Figures are the same whether a run was stopped in between or not.
"""

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
from ..sample.loop import Conditioning, draw_noise, sample
from ..sample.spec import Sampler
from ..tools.files import append_json_line, read_json_lines, whole_file
from ..values.grid import Size3
from ..values.memory import Memory
from ..values.text import Text
from .distributed import fsdp_requested, reshard
from .optim import learning_rate
from .worker import TrainWorker

METRICS = "metrics.jsonl"  # the same to the byte, however often the run was stopped
PACE = "pace.jsonl"  # seconds, which are never the same
PREVIEW_FRAMES = 4
PREVIEW_SAMPLER = Sampler(scheduler="euler", steps=10, guidance=1.0)  # of continuations


@define
class MetricsLogger:
    """Averages losses between lines, measures memory_gain, and draws what memory gives back.

    Attributes:
        writer: where to; None in processes that do not write.
        previews: what draws pictures.
        losses: of the steps since the last line; they travel in the checkpoint.
        loss: of the last step.
        gain: memory_gain as last measured.
        line_time: when the last line was written, by `time.monotonic`.
        line_steps: steps since then in this process.
    """

    worker: TrainWorker
    writer: LogWriter | None
    previews: Previews
    losses: list[float] = field(factory=list)
    loss: float | None = None
    gain: float | None = None
    line_time: float = 0.0
    line_steps: int = 0

    @classmethod
    def of(
        cls, worker: TrainWorker, writer: LogWriter | None, store: Store, state: Mapping[str, Any]
    ) -> Self:
        """Return the logger of a run over a store, as `state_dict` of its checkpoint left it."""
        previews = Previews.of(worker.experiment, store)
        losses, loss, gain = list(state.get("losses", [])), state.get("loss"), state.get("gain")
        return cls(worker, writer, previews, losses, loss, gain)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold for the logs to go on."""
        return {"losses": self.losses, "loss": self.loss, "gain": self.gain}

    def start(self) -> None:
        """Count seconds from now."""
        self.line_time = time.monotonic()

    def after_step(self, step: int, batch: Batch, loss: float) -> None:
        """Write what is due after a step; `batch` is this process's share of it."""
        spec = self.worker.spec
        self.losses.append(loss)
        self.loss = loss
        self.line_steps += 1
        last = step >= spec.steps
        if step % spec.gain_every == 0 or last:
            self._measure_memory(step, batch)
        if step % spec.log_every == 0 or last:
            self._write_line(step)

    def close(self) -> None:
        """Flush and close."""
        if self.writer:
            self.writer.close()

    def _write_line(self, step: int) -> None:
        now = time.monotonic()
        if self.writer:
            rate = learning_rate(self.worker.spec, step - 1)
            mean = sum(self.losses) / len(self.losses)
            self.writer.scalars(step, {"loss": mean, "learning_rate": rate})
            seconds = (now - self.line_time) / self.line_steps
            self.writer.pace(step, {"seconds_a_step": seconds})
        self.losses, self.line_time, self.line_steps = [], now, 0

    @torch.no_grad()
    def _measure_memory(self, step: int, batch: Batch) -> None:
        """Log memory_gain and a picture, both of the weights that users get."""
        worker = self.worker
        if batch.history.batch < 2 or not worker.experiment.remembers:
            return
        batch = batch.to(worker.device)
        with worker.averaged():
            losses = worker.stage.memory_losses(batch, step)
            self._log_picture(step, batch)
            reshard(worker.stage)
        gain, specific = (float(worker.gather(x).mean()) for x in (losses.gain, losses.specific))
        self.gain = gain
        if self.writer:
            self.writer.scalars(step, {"memory_gain": gain, "memory_specific": specific})

    def _log_picture(self, step: int, batch: Batch) -> None:
        previews, stage = self.previews, self.worker.stage
        draws = self.writer is not None and previews.ready()
        # where weights are sharded, all processes must run the same
        if not draws and not (fsdp_requested() and previews.reads_memory):
            return
        model, seed = self.worker.model, self.worker.spec.seed
        make = previews.retrieve if batch.past is None else previews.go_on
        preview = stage.as_forward(lambda: make(model, batch, stage.null_text, seed=seed))
        image = previews.draw(preview) if draws else None
        what = "retrieved" if batch.past is None else "continued"
        if self.writer and image is not None:
            self.writer.picture(step, f"{what} below original", image)


class LogWriter:
    """Writes scalars and pictures of a run; on resume, what came after the checkpoint is dropped.

    Args:
        run: the run's folder.
        step: that of the checkpoint; 0 for a fresh run.
    """

    def __init__(self, run: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        for name in (METRICS, PACE):
            _drop_lines_after(step, run / name)
        self.board: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Log figures of a step that follow from the experiment alone."""
        self._write(METRICS, step, values)

    def pace(self, step: int, values: dict[str, float]) -> None:
        """Log how fast this machine went."""
        self._write(PACE, step, values)

    def _write(self, file: str, step: int, values: dict[str, float]) -> None:
        append_json_line(self.run / file, {"step": step, **values})
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """Log a picture, uint8 `[3, P, Q]`."""
        self.board.add_image(name, image, step)

    def close(self) -> None:
        """Flush and close."""
        self.board.close()


def _drop_lines_after(step: int, path: Path) -> None:
    lines = [line for line in read_json_lines(path) if line["step"] <= step]
    with whole_file(path) as part:
        part.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )


@frozen(eq=False, kw_only=True)
class Preview:
    """Frames Ω `[1, K]` of true latents, and what the model made of them.

    Attributes:
        latents: the true ones, `[1, C, T, H, W]`.
        omega: Ω.
        retrieved: the frames that the model gave.
        among: the latents that those are decoded among; `latents`, but for a continuation.
    """

    latents: Tensor
    omega: Tensor
    retrieved: Retrieved
    among: Tensor


@define
class Previews:
    """Draws what memory gives back, with one codec for a run.

    Weights of the codec are loaded at the first picture and wait on the CPU for the next. Training
    does not need them, so where they are not on this machine, or cannot be used, there are no
    pictures: the log says so once.

    Attributes:
        reads_memory: whether a retriever of the experiment does: the same in all processes.
        obstacle: why this process draws no pictures; "": it does.
        warned: whether the log has said so.
    """

    codec: Codec[CodecSpec]
    reads_memory: bool = True
    obstacle: str = ""
    warned: bool = False

    @classmethod
    def of(cls, experiment: Experiment, store: Store) -> Self:
        """Prepare the pictures of a run over a store; nothing is loaded yet."""
        codec: Codec[CodecSpec] = build(experiment.backbone.codec)
        store.apply_margin(codec)
        try:
            if experiment.finetune is None:
                learned_retriever(experiment)
        except UserError as error:
            return cls(codec, reads_memory=False, obstacle=str(error))
        if codec.available_offline:
            return cls(codec)
        return cls(codec, obstacle="the codec's weights are not on this machine")

    def ready(self) -> bool:
        """Return whether a picture can be drawn; the first time that it cannot, warn."""
        if self.obstacle and not self.warned:
            self.warned = True
            log = logging.getLogger(__name__)
            log.warning("no pictures of retrieved frames: %s", self.obstacle)
        return not self.obstacle

    @torch.no_grad()
    def retrieve(self, model: Model, batch: Batch, null_text: Text, *, seed: int) -> Preview:
        """Retrieve four frames of the batch's first sample, spread evenly over its window.

        The memory is that of the clean history.
        """
        history = batch.history.select([0])
        self.codec.to(history.latents.device)
        last = history.size.time - 1
        omega = torch.linspace(0, last, min(PREVIEW_FRAMES, last + 1)).round().long().unique()[None]
        scene = make_scene(model, self.codec, batch, null_text)
        generator = torch.Generator().manual_seed(seed)
        retriever = build_retriever(learned_retriever(model.experiment))
        retrieved = retriever.retrieve(scene, omega, generator)
        latents = history.latents
        return Preview(latents=latents, omega=omega, retrieved=retrieved, among=latents)

    @torch.no_grad()
    def go_on(self, model: Model, batch: Batch, null_text: Text, *, seed: int) -> Preview:
        """Go on from the past of the batch's first sample; show four frames spread over the target.

        The memory is that of the clean past; there is none where a batch has no past.
        """
        asked = batch.select([0]).continuation()
        device, past = asked.target.device, asked.history.size.time
        self.codec.to(device)
        memory = model.encoder(asked.history) if past else Memory()
        _, channels, *size = asked.target.shape
        shape = Size3(time=size[0], height=size[1], width=size[2])
        noise = draw_noise(channels, shape, torch.Generator().manual_seed(seed)).to(device)
        conditioning = Conditioning(
            text=asked.prompt, null_text=null_text.to(device), memory=memory
        )
        frames, shift = asked.frames.to(device), model.experiment.backbone.shift
        made = sample(model.backbone, PREVIEW_SAMPLER, noise, frames, conditioning, shift=shift)
        count = min(PREVIEW_FRAMES, shape.time)
        chosen = torch.linspace(0, shape.time - 1, count).round().long().unique()
        return Preview(
            latents=batch.history.latents[:1],
            omega=past + chosen[None],
            retrieved=LatentFrames(latents=made[:, :, chosen.to(device)]),
            among=torch.cat([asked.history.latents, made], dim=2),
        )

    @torch.no_grad()
    def draw(self, preview: Preview) -> Tensor | None:
        """Return the frames below their originals, uint8 `[3, P, Q]`; None where decoding fails.

        A picture is worth no run: what fails here, as for want of memory, ends the pictures alone.
        """
        latents, omega = preview.latents, preview.omega
        truth = LatentFrames(latents=latents[:, :, omega[0].to(latents.device)])
        shown = ((latents, truth), (preview.among, preview.retrieved))
        try:
            rows = [last_frames(self.codec, among, omega, frames) for among, frames in shown]
        except (UserError, torch.OutOfMemoryError) as error:
            self.obstacle = str(error).partition("\n")[0]
            self.ready()
            return None
        finally:
            self.codec.to("cpu")
        return torch.cat(rows, dim=1)
