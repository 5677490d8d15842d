"""`tiny-base`: Stage 0, the tiny DiT as a plain video model without memory (design §6).

A tiny backbone has seen no video before, so it is pretrained here as the real ones were: flow
matching on a few latent frames with the caption of their shot. Stage I then adds memory and LoRA:

    longtake pretrain tiny-base-small --data stores/small --out runs/base-small
    longtake pretrain tiny-base --data stores/full --out runs/base --start runs/base-small
    longtake pretrain tiny-wan-2x2x2-small --data stores/full --out runs/first
        --set backbone.weights=runs/base/checkpoint-600/backbone
"""

from __future__ import annotations

from attrs import evolve

from ..backbones.specs import TinyWan
from ..core.experiment import CacheSpec, Experiment, TrainSpec
from ..plugins.specs import MeanFrame, Noise, Psnr

SMALL, FULL = 64 * 112, 128 * 224  # pixels of a frame
DIT = TinyWan(heads=8, head_width=32)

TINY_BASE = Experiment(
    name="tiny-base",
    backbone=DIT,
    compressors=(),
    masker=Noise(counts=(4,), contiguous=1.0),
    retrievers=(MeanFrame(),),
    metrics=(Psnr(),),
    cache=CacheSpec(area=FULL),
    train=TrainSpec(
        steps=600,
        batch=8,
        seconds=(2.0, 2.0),
        trains="all",
        optimizer="muon",
        rate=1e-3,
        warmup=30,
        decay=0.7,
        pure=0.2,
        weigh=1.0,
        memory_dropout=0.0,
        precision="bf16",
        save_every=100,
    ),
)
TINY_BASE_SMALL = evolve(
    TINY_BASE,
    name="tiny-base-small",
    cache=CacheSpec(area=SMALL, mirror=True, pixels=False),
    train=evolve(TINY_BASE.train, steps=1000, batch=16, decay=0.0, warmup=100),
)
