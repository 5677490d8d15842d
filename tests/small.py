"""Small experiments and videos that train in a moment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from attrs import evolve

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.texts.specs import Bytes
from longtake.backbones.wan.specs import TinyWan
from longtake.core.cache.cache import cache
from longtake.core.cache.encode import MultiRateEncoder
from longtake.core.experiment import (
    CacheSpec,
    Experiment,
    FinetuneSpec,
    MeasureSpec,
    TrainSpec,
)
from longtake.core.interfaces.codec import Codec
from longtake.core.interfaces.spec import CodecSpec, LoRA
from longtake.core.model import all_needs
from longtake.core.values.grid import Rate
from longtake.core.video.write import write_video
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.maskers.specs import Noise
from longtake.plugins.metrics.specs import Psnr, Ssim
from longtake.plugins.retrievers.specs import Flow, MeanFrame, Upsample

RATE = Rate(height=2, width=2, time=2)


def small(**train: object) -> Experiment:
    """A model of a few thousand parameters over 32×48 pixels."""
    settings: dict[str, object] = {
        "steps": 4, "batch": 2, "seconds": (1.0, 2.0), "trains": "all", "rate": 1e-3,
        "warmup": 2, "save_every": 2, "log_every": 1, "gain_every": 4, "precision": "fp32",
        "adapter": LoRA(rank=2, alpha=2.0),
    }  # fmt: skip
    return Experiment(
        name="small",
        backbone=TinyWan(
            heads=2, head_width=12, layers=2, ffn=16, begin="diffusers",
            codec=Dct(channels=16), text_encoder=Bytes(width=8, length=8),
        ),
        compressors=(Conv(rate=RATE, channels=(4, 6), heads=2, head_width=4),),
        masker=Noise(),
        retrievers=(Flow(steps=1), Upsample(rate=RATE), MeanFrame()),
        metrics=(Psnr(), Ssim()),
        cache=CacheSpec(area=32 * 48, min_seconds=1.0),
        train=evolve(TrainSpec(), **(settings | train)),
        measure=MeasureSpec(seconds=2.0, draws=1),
    )  # fmt: skip


def small_finetune(finetune: FinetuneSpec | None = None, **train: object) -> Experiment:
    """Stage II of `small`: LoRA over the same random DiT, a second of past and half of target."""
    cut = finetune or FinetuneSpec(past=(0.5, 1.5), target=(0.5, 1.0), cuts_inside=True)
    experiment = small(**({"trains": "lora", "memory_dropout": 0.3} | train))
    return evolve(experiment, name="small-finetune", finetune=cut)


def moving(seed: int, seconds: float = 2.5, fps: int = 8, size: tuple[int, int] = (32, 48)):
    """Frames uint8 [F, H, W, 3] of a coloured square that moves over a gradient."""
    rng = np.random.default_rng(seed)
    count = round(seconds * fps)
    ramp = np.linspace(0, 160, size[1])[None, None, :, None]
    frames = np.broadcast_to(ramp, (count, *size, 3)).astype(np.uint8).copy()
    colour, row, step = rng.integers(60, 255, 3), rng.integers(0, size[0] - 10), rng.integers(1, 3)
    for k in range(count):
        left = (k * step) % (size[1] - 10)
        frames[k, row : row + 10, left : left + 10] = colour
    return frames


def write_clips(folder: Path, seeds: Sequence[int] = (1, 2, 3), seconds: float = 2.5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        write_video(folder / f"clip-{seed}.mp4", moving(seed, seconds), 8)
    return folder


def make_store(folder: Path, experiment: Experiment, seeds: Sequence[int] = (1, 2, 3)) -> Path:
    videos = write_clips(folder / "videos", seeds)
    needs = all_needs(experiment)
    store = folder / "store"
    cache(
        experiment, videos, store,
        rates=needs.rates, pixels=needs.pixels, device=torch.device("cpu"),
    )  # fmt: skip
    return store


def encode_lowres(codec: Codec[CodecSpec], rate: Rate, chunks: Iterable[torch.Tensor]):
    """The LR latents of a video in [−1, 1] that comes in chunks of any number of frames."""
    lowres = MultiRateEncoder.of(codec, [rate])
    for chunk in chunks:
        lowres.push(chunk)
    return lowres.joined()[rate]
