r"""`tiny-base`: Stage 0, the tiny DiT as a plain video model without memory (design §6).

A tiny backbone has seen no video before, so it is pretrained here as the real ones were: flow
matching on a few latent frames with the caption of their shot, on small frames. Clips without
captions go by their file's name and shot, which takes the extra `longtake[cuts]`; the base that
ships was trained with file names alone, since its store was made without cuts. Stage I then adds
memory and LoRA:

    longtake cache tiny-base --videos clips/ --out stores/base
    longtake pretrain tiny-base --data stores/base --out runs/base
    longtake pretrain tiny-wan-2x2x2-crops --data stores/clips --out runs/crops \
        --set backbone.weights=runs/base/checkpoint-520/backbone
"""

from __future__ import annotations

from ..backbones.wan.specs import TinyWan
from ..core.experiment import CacheSpec, Experiment, TrainSpec
from ..plugins.specs import MeanFrame, Noise, Psnr

TINY_BASE = Experiment(
    name="tiny-base",
    backbone=TinyWan(heads=8, head_width=32),
    compressors=(),
    masker=Noise(counts=(4,), contiguous=1.0),
    retrievers=(MeanFrame(),),
    metrics=(Psnr(),),
    cache=CacheSpec(area=64 * 112, mirror=True, pixels=False, cuts=True),
    train=TrainSpec(
        steps=520,
        batch=16,
        seconds=(2.0, 2.0),
        trains="all",
        optimizer="muon",
        rate=1e-3,
        warmup=100,
        decay=0.35,
        memory_dropout=0.0,
        pure=0.2,
        weigh=1.0,
        save_every=130,
    ),
)
