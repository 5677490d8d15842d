"""Shipped experiments at a thousandth of their size, and clips to run them on."""

from __future__ import annotations

from pathlib import Path

import attrs

from ...backbones.codecs.specs import Dct
from ...backbones.texts.specs import Bytes
from ...backbones.wan.specs import TinyWan
from ...core.demo.clip import write_builtin_clip
from ...core.experiment import CacheSpec, Experiment, MeasureSpec
from ...core.lora import LoRA
from ...core.spec import CompressorSpec
from ...plugins.specs import Conv

DIT = TinyWan(
    heads=2,
    head_width=12,
    layers=2,
    ffn=16,
    codec=Dct(channels=16),
    text_encoder=Bytes(width=8, length=8),
)


def tinier(experiment: Experiment) -> Experiment:
    """Give an experiment over 32×48 pixels that trains two steps of two samples."""
    train = attrs.evolve(
        experiment.train,
        steps=2,
        batch=2,
        accumulate=1,
        seconds=(2.0, 2.0),
        crop=(0, 0),
        adapter=LoRA(rank=2, alpha=2.0),
        warmup=0,
        memory_dropout=0.0,
        precision="fp32",
        log_every=1,
        gain_every=10**6,
    )
    return attrs.evolve(
        experiment,
        backbone=DIT,
        compressors=tuple(_thin(spec) for spec in experiment.compressors),
        retrievers=experiment.retrievers[:1],
        metrics=experiment.metrics[:1],
        cache=CacheSpec(area=32 * 48, min_seconds=1.0, mirror=experiment.cache.mirror),
        train=train,
        measure=MeasureSpec(seconds=2.0, draws=1),
    )


def untrained(experiment: Experiment) -> Experiment:
    """Give an experiment on random weights: speed and memory do not depend on them."""
    if not isinstance(experiment.backbone, TinyWan):
        return experiment
    return attrs.evolve(experiment, backbone=attrs.evolve(experiment.backbone, weights=None))


def _thin(spec: CompressorSpec) -> CompressorSpec:
    if not isinstance(spec, Conv):
        return spec
    return attrs.evolve(spec, channels=(4, 6), heads=2, head_width=4)


def tiny_clips(root: Path) -> Path:
    """Write three clips to train on and two to measure, and give their folder."""
    for place, count in (("train", 3), ("val", 2)):
        for number in range(count):
            path = root / place / f"clip-{number}.mp4"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_builtin_clip(path, 3.0 + number, 8, 32, 48)
    return root
