r"""`tiny-wan` and its base: the paper's method on a DiT of 9 M parameters, for two CPU cores.

Stage 0 makes `tiny-base`, a plain video model without memory (design §6): a tiny backbone has seen
no video before, so it is pretrained as the real ones were, by flow matching on a few latent frames
with the caption of their shot, on small frames. Clips without captions go by their file's name and
shot, which takes the extra `longtake[cuts]`; the base that ships was trained with file names alone,
since its store was made without cuts. Stage I then trains the encoder and LoRA of rank 64 on it,
as on the real backbones, in two parts over one store: first on random crops, where a batch holds
many clips, then on whole frames:

    longtake cache tiny-base --videos clips/ --photos photos/ --out stores/base
    longtake pretrain tiny-base --data stores/base --out runs/base
    longtake cache tiny-wan-2x2x2 --videos clips/ --photos photos/ --out stores/clips \
        --set cache.mirror=true --set cache.pixels=false
    longtake pretrain tiny-wan-2x2x2-crops --data stores/clips --out runs/crops \
        --set backbone.weights=runs/base/checkpoint-420/backbone
    longtake pretrain tiny-wan-2x2x2 --data stores/clips --out runs/whole --start runs/crops \
        --set backbone.weights=runs/base/checkpoint-420/backbone

Without `--set` Stage I begins with the base that ships.
"""

from __future__ import annotations

from typing import cast

from attrs import evolve

from ..backbones.specs import TINY
from ..backbones.wan.specs import TinyWan
from ..core.config.recipe import recommended
from ..core.experiment import CacheSpec, Experiment, TrainSpec
from ..core.values.grid import Rate
from ..plugins.compressors.specs import Conv
from ..plugins.maskers.specs import Noise
from ..plugins.metrics.specs import Psnr
from ..plugins.retrievers.specs import MeanFrame
from .paper import paper

FULL: int = TINY["cache.area"]  # pixels of a frame
R222 = Rate(height=2, width=2, time=2)
R442 = Rate(height=4, width=4, time=2)


def tiny(rate: Rate) -> Experiment:
    """Return the tiny experiment on whole frames at a compression rate."""
    return paper(f"tiny-wan-{rate}", recommended(TinyWan), rate)


def crops(whole: Experiment) -> Experiment:
    """Return the first part of an experiment's training: many small crops at a steady rate.

    A crop of 8×16 latents holds 2×4 memory tokens at 2×2×2 but 1×2 at 4×4×2, which leaves the
    second part more to learn.
    """
    train = evolve(whole.train, steps=700, batch=16, crop=(8, 16), rate=3e-3, decay=0.0, warmup=50)
    return evolve(whole, name=f"{whole.name}-crops", train=train)


TINY_WAN_2X2X2 = tiny(R222)
TINY_WAN_4X4X2 = tiny(R442)
TINY_WAN_2X2X2_CROPS = crops(TINY_WAN_2X2X2)
TINY_WAN_4X4X2_CROPS = crops(TINY_WAN_4X4X2)
ENCODER = cast("Conv", TINY_WAN_2X2X2.compressors[0])
TINY_WAN_ONLY_LR = evolve(
    TINY_WAN_2X2X2,
    name="tiny-wan-2x2x2-only-lr",
    compressors=(evolve(ENCODER, hr=False),),
)
TINY_WAN_WITHOUT_LR = evolve(
    TINY_WAN_2X2X2,
    name="tiny-wan-2x2x2-without-lr",
    compressors=(evolve(ENCODER, lr=False),),
)

TINY_BASE = Experiment(
    name="tiny-base",
    backbone=evolve(recommended(TinyWan), weights=None),
    compressors=(),
    masker=Noise(counts=(4,), contiguous=1.0),
    retrievers=(MeanFrame(),),
    metrics=(Psnr(),),
    cache=CacheSpec(area=64 * 112, mirror=True, pixels=False, cuts=True),
    train=TrainSpec(
        steps=420,
        batch=16,
        seconds=(2.0, 2.0),
        trains="all",
        optimizer="muon",
        rate=1e-3,
        warmup=60,
        decay=0.35,
        memory_dropout=0.0,
        pure=0.2,
        weigh=1.0,
        save_every=60,
    ),
)
