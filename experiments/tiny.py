r"""`tiny-wan`: the paper's method on a DiT of 9 M parameters, for two CPU cores.

The real backbones have seen more video than anybody can here. An hour of plain flow matching on one
core taught no head of a DiT from scratch where memory is: on design §6's Stage 0, a plain video
model, one step of Stage I gave 15.7 dB, below the mean frame, and 16.7 on one that read the LR
tokens of its past. So the tiny DiT and its encoder begin together, in closed form
(`closed_form/`): minutes of linear algebra make the encoder a linear code and turn the heads to
the places that a token of a rate stands for. What ships is that beginning, of each rate its own:
Stage I from there, at low rates on two cores, has made one step worse so far and low times better.
`tiny-plain` is the plain video model, for comparison.

    longtake cache tiny-wan-2x2x2 --videos clips/ --photos photos/ --out stores/clips \
        --set cache.mirror=true --set cache.pixels=false --set 'cache.rates=["2x2x2", "4x4x2"]'
    python -m longtake.experiments.closed_form tiny-wan-2x2x2 --data stores/clips --out runs/start

Stage I trains the encoder and LoRA of rank 64 on a frozen DiT, as on the real backbones:

    longtake pretrain tiny-wan-2x2x2 --data stores/clips --out runs/first --start tiny-wan-2x2x2
"""

from __future__ import annotations

from typing import cast

from attrs import evolve

from ..backbones.specs import TINY
from ..backbones.wan.specs import TinyWan
from ..core.config.recipe import recommended
from ..core.experiment import Experiment, TrainSpec
from ..core.values.grid import Rate
from ..plugins.compressors.specs import Conv
from ..plugins.retrievers.specs import MeanFrame
from .paper import paper

FULL: int = TINY["cache.area"]  # pixels of a frame
CROP = (8, 16)  # latents: 2×4 memory tokens at 2×2×2
R222 = Rate(height=2, width=2, time=2)
R442 = Rate(height=4, width=4, time=2)


def tiny(rate: Rate) -> Experiment:
    """Return the tiny experiment on whole frames, on the DiT that ships for a compression rate."""
    return paper(f"tiny-wan-{rate}", recommended(TinyWan, rate), rate)


def crops(whole: Experiment) -> Experiment:
    """Return an experiment's training on many small crops at a steady rate, a cheaper first part.

    A crop of 8×16 latents holds 2×4 memory tokens at 2×2×2 but 1×2 at 4×4×2.
    """
    train = evolve(whole.train, steps=1000, batch=8, crop=CROP, decay=0.0)
    return evolve(whole, name=f"{whole.name}-crops", train=train)


def from_scratch(whole: Experiment, name: str) -> Experiment:
    """Return an experiment that trains all of a backbone without weights, on crops."""
    backbone = evolve(cast("TinyWan", whole.backbone), weights=None)
    train = evolve(whole.train, batch=8, crop=CROP, seconds=(4.0, 12.0), trains="all")
    return evolve(whole, name=name, backbone=backbone, train=quick(train, steps=700))


def quick(train: TrainSpec, steps: int) -> TrainSpec:
    """Return the training of what begins at random: the recipe's rates are for what ships."""
    return evolve(train, steps=steps, optimizer="muon", rate=2e-3, warmup=20, decay=0.4)


TINY_WAN_2X2X2 = tiny(R222)
TINY_WAN_4X4X2 = tiny(R442)
TINY_WAN_2X2X2_CROPS = crops(TINY_WAN_2X2X2)
TINY_WAN_4X4X2_CROPS = crops(TINY_WAN_4X4X2)
ENCODER = cast("Conv", TINY_WAN_2X2X2.compressors[0])
TINY_WAN_ONLY_LR = evolve(
    TINY_WAN_2X2X2,
    name="tiny-wan-2x2x2-only-lr",
    compressors=(evolve(ENCODER, hr=False),),
    train=quick(TINY_WAN_2X2X2.train, steps=1000),
)
TINY_WAN_WITHOUT_LR = evolve(
    TINY_WAN_2X2X2,
    name="tiny-wan-2x2x2-without-lr",
    compressors=(evolve(ENCODER, lr=False),),
    train=quick(TINY_WAN_2X2X2.train, steps=1000),
)

TINY_BASE = from_scratch(TINY_WAN_2X2X2, "tiny-base")
TINY_BASE_4X4X2 = from_scratch(TINY_WAN_4X4X2, "tiny-base-4x4x2")
# Stage 0 of design §6: without any memory.
TINY_PLAIN = evolve(
    from_scratch(TINY_WAN_2X2X2, "tiny-plain"),
    compressors=(),
    retrievers=(MeanFrame(),),
)
TINY_PLAIN = evolve(TINY_PLAIN, train=evolve(TINY_PLAIN.train, memory_dropout=0.0))
