"""What `longtake bench` says of the loader: a batch of cached windows beside a training step."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from .data.captions import whole
from .data.record import Record, clip_path
from .data.store import Store, made_with
from .data.texts import text_path, text_tensors
from .data.windows import WindowBatches, Windows
from .device import pick_device
from .experiment import Experiment
from .files import append_line, write_json, write_tensors
from .grid import Size3
from .model import Model, build_model, compressor_needs
from .registry import build
from .text import Text, embed_all
from .train.optim import freeze, make_optimizer
from .train.stage import StageOne

CLIPS = 8
STEPS = 2
REPEATS = 3
PROMPT = "a walk by the sea"
LENGTH = 512  # tokens of a prompt that no encoder made, as many as Wan reads
GOAL = 3.0


def loader(experiment: Experiment, size: Size3, data: Path | None = None) -> dict[str, Any]:
    """Give the seconds to make batches of cached windows beside those of training on them.

    Args:
        experiment: what to train; batch and window lengths are its own.
        size: latents of each clip of the store that is written for this.
        data: a store to read instead, made for this experiment.

    Raises:
        UserError: the store is none, or its clips are shorter than a training window.
    """
    model = build_model(experiment, adapters=True)
    with _store(model, size, data) as store:
        needs = compressor_needs(experiment)
        windows = Windows.of(store, experiment.backbone.geometry, experiment.train, needs)
        batches = WindowBatches(store, windows, needs, STEPS)
        load = [_load_seconds(batches, step) for step in range(STEPS)]
        train = _step_seconds(model, batches)
    return {
        "store": str(data) if data else f"{CLIPS} clips of {size.time} latents, written for this",
        "batch": experiment.train.batch,
        "steps": STEPS,
        "load_seconds": sum(load) / STEPS,
        "step_seconds": sum(train) / STEPS,
        "ratio": sum(train) / sum(load),
        "goal": GOAL,
    }


def _load_seconds(batches: WindowBatches, step: int) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        batches[step].to(pick_device())
        times.append(time.perf_counter() - began)
    return sorted(times)[REPEATS // 2]


def _step_seconds(model: Model, batches: WindowBatches) -> list[float]:
    """Give the seconds of each training step: forward, backward, clip, optimizer."""
    experiment = model.experiment
    freeze(model.to(pick_device()))
    masker, null = build(experiment.masker), batches.store.null_text()
    stage = StageOne(model, masker, experiment.train, null).to(pick_device())
    optimizer = make_optimizer(stage, experiment.train)
    trained = [p for p in stage.parameters() if p.requires_grad]
    times = []
    for step in (0, *range(STEPS)):  # the first one warms up
        batch = batches[step].to(pick_device())
        began = time.perf_counter()
        stage(batch, step).backward()
        torch.nn.utils.clip_grad_norm_(trained, experiment.train.clip)
        optimizer.step()
        optimizer.zero_grad()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return times[1:]


def some_text(model: Model) -> Text:
    """Give one prompt, embedded; zeros of the right widths where the encoder is not at hand.

    No weights are fetched for the sake of a time.
    """
    encoder = build(model.experiment.backbone.text_encoder)
    if encoder.at_hand:
        return embed_all(encoder, [PROMPT])
    return model.backbone.blank_text(1, LENGTH).to("cpu", torch.float32)


@contextmanager
def _store(model: Model, size: Size3, data: Path | None) -> Iterator[Store]:
    if data is not None:
        yield Store.open(data)
        return
    with tempfile.TemporaryDirectory() as folder:
        _write(model, size, Path(folder))
        yield Store.open(Path(folder))


def _write(model: Model, size: Size3, root: Path) -> None:
    """Write a store of random clips, in the files that `cache` writes."""
    experiment = model.experiment
    geometry, rates = experiment.backbone.geometry, compressor_needs(experiment).rates
    header = made_with(geometry, codec="random", text="one prompt", fps=geometry.fps)
    write_json(root / "store.json", header)
    tensors = text_tensors(some_text(model))
    for prompt in ("", PROMPT):
        write_tensors(text_path(root, prompt), tensors, {"prompt": prompt})
    dtype = getattr(torch, experiment.cache.dtype)
    sizes = {"latents": size, **{f"lr/{rate}": rate.lr_size(size) for rate in rates}}
    for number in range(CLIPS):
        tensors = {
            name: torch.randn(geometry.channels, s.time, s.height, s.width).to(dtype)
            for name, s in sizes.items()
        }
        record = _record(f"clip-{number}", size, experiment, rates=sorted(map(str, rates)))
        write_tensors(clip_path(root, record.id), tensors, {})
        append_line(root / "index" / "00000-of-00001.jsonl", record.line())


def _record(name: str, size: Size3, experiment: Experiment, rates: list[str]) -> Record:
    geometry = experiment.backbone.geometry
    return Record(
        id=name,
        source=f"{name}.mp4",
        fingerprint="",
        latents=size.time,
        height=size.height,
        width=size.width,
        frames=1 + geometry.vae_stride.time * (size.time - 1),
        fps=geometry.fps,
        captions=whole(PROMPT),
        placement="",
        rates=tuple(rates),
    )


def loader_line(found: dict[str, Any]) -> str:
    """Give the figures as a line to read."""
    return (
        f"loader     a batch of {found['batch']} in {found['load_seconds'] * 1e3:.1f} ms, a "
        f"training step on it {found['step_seconds'] * 1e3:.0f} ms: {found['ratio']:.1f}× "
        f"(goal ≥ {found['goal']:.0f}×; {found['store']})"
    )
