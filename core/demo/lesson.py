"""The demo's lesson: a few training steps on one clip, set so that so few can help.

Training as in a long run spends so few steps on more than is then measured: batches that drop
memory or text, and times other than t = 1, where one-step retrieval starts. Here every step reads
memory and text at t = 1, with AdamW and a gentle rate. Weights ship with the number type that they
were trained in; the lesson takes what this machine is fast in.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import attrs

from ..data.store import Store
from ..experiment import Experiment, TrainSpec
from ..files import read_lines
from ..progress import Report
from ..train.checkpoint import read_run
from ..train.log import METRICS
from ..train.pretrain import pretrain

ALL, ADAPTERS = 1e-4, 3e-4  # rates: of a DiT trained whole, of the encoder and LoRA of scale 1
BATCH = 4
LONG = 10**6  # steps: never in so short a run


def lesson(experiment: Experiment, store: Store, steps: int) -> Experiment:
    """Give the experiment with the training of `steps` steps on the store's only clip."""
    record = store.records[0]
    seconds = min(experiment.measure.seconds, record.frames / record.fps)
    train = attrs.evolve(
        experiment.train,
        steps=steps,
        batch=BATCH,
        accumulate=1,
        seconds=(seconds, seconds),
        optimizer="adamw",
        crop=(0, 0),
        rate=gentle(experiment.train),
        warmup=3,
        decay=0.5,
        ema=0.0,
        memory_dropout=0.0,
        text_dropout=0.0,
        pure=1.0,
        precision="auto",
        log_every=1,
        gain_every=LONG,
        save_every=LONG,
        save_minutes=0.0,
        keep=1,
    )
    return attrs.evolve(experiment, train=train)


def gentle(train: TrainSpec) -> float:
    """Give the learning rate: what adapters do grows with their scale, alpha / rank."""
    if train.trains != "lora":
        return ALL if train.trains == "all" else ADAPTERS
    return ADAPTERS / max(1.0, train.adapter.alpha / train.adapter.rank)


def taught(
    experiment: Experiment, store: Store, run: Path, weights: Path, *, steps: int, progress: Report
) -> tuple[Path, tuple[float, ...]]:
    """Train from `weights` on the clip; give the run and the loss of every step."""
    shutil.rmtree(run, ignore_errors=True)
    spec = lesson(experiment, store, steps)
    pretrain(spec, store.root, run, start=read_run(weights)[1], progress=progress)
    lines = read_lines(run / METRICS)
    return run, tuple(float(line["loss"]) for line in lines if "loss" in line)
