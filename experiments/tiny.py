r"""`tiny-wan` and its base: the paper's method on a DiT of 9 M parameters, for two CPU cores.

Stage 0 makes `tiny-base`. Design §6 has it a plain video model; ours also reads its past, as the LR
tokens of the paper's encoder at 2×2×2. In an hour of one core plain flow matching teaches no head
of a DiT from scratch where to look, and LoRA on frozen heads did not make up for it (one step gave
15.7 dB then, below the mean frame). `tiny-plain` is that plain model, for comparison. Clips without
captions go by their file's name and shot, which takes the extra `longtake[cuts]`; the base that
ships was trained with file names alone, since its store was made without cuts.

Stage I then trains the encoder and LoRA of rank 64 on the frozen base, as on the real backbones, in
two parts: first on random crops, where a batch holds many clips, then on whole frames. One store
serves all:

    longtake cache tiny-wan-2x2x2 --videos clips/ --photos photos/ --out stores/clips \
        --set cache.mirror=true --set cache.pixels=false
    longtake pretrain tiny-base --data stores/clips --out runs/base
    longtake pretrain tiny-wan-2x2x2-crops --data stores/clips --out runs/crops \
        --set backbone.weights=runs/base/checkpoint-700/backbone
    longtake pretrain tiny-wan-2x2x2 --data stores/clips --out runs/whole --start runs/crops \
        --set backbone.weights=runs/base/checkpoint-700/backbone

Without `--set` Stage I begins with the base that ships.
"""

from __future__ import annotations

from typing import cast

from attrs import evolve

from ..backbones.specs import TINY
from ..backbones.wan.specs import TinyWan
from ..core.config.recipe import recommended
from ..core.experiment import Experiment
from ..core.values.grid import Rate
from ..plugins.compressors.specs import Conv
from ..plugins.retrievers.specs import MeanFrame
from .paper import paper

FULL: int = TINY["cache.area"]  # pixels of a frame
CROP = (8, 16)  # latents: 2×4 memory tokens at 2×2×2
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
    train = evolve(whole.train, steps=1000, batch=8, crop=CROP, decay=0.0)
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

# Stage 0. The real backbones have seen more video than anybody can here, and heads of theirs know
# where to look; those of a DiT from scratch learn it from the one memory that brings no weights of
# its own, the LR latents in G's own tokens.
TINY_BASE = evolve(
    TINY_WAN_ONLY_LR,
    name="tiny-base",
    backbone=evolve(cast("TinyWan", TINY_WAN_2X2X2.backbone), weights=None),
    train=evolve(
        TINY_WAN_2X2X2.train,
        steps=700,
        batch=8,
        crop=CROP,
        seconds=(4.0, 12.0),
        trains="all",
        rate=3e-3,
        warmup=20,
        decay=0.4,
    ),
)
# The same without any memory: a plain video model.
TINY_PLAIN = evolve(
    TINY_BASE,
    name="tiny-plain",
    compressors=(),
    retrievers=(MeanFrame(),),
    train=evolve(TINY_BASE.train, memory_dropout=0.0),
)
