"""The paper's Stage II on each backbone at each of its rates, and the tiny ones (Eq. 4).

Each is `second_stage` of its Stage I: memory and LoRA are the same; lengths of past and target,
steps and memory dropout are in the recipe of the backbone (`backbones/specs.py`) under `finetune.`.
Two controls differ by one field: with `frozen-encoder` the encoder stays as Stage I left it,
`without-pretraining` begins with a fresh one.

    longtake cache tiny-wan-2x2x2-finetune --videos clips/ --out stores/clips
    longtake finetune tiny-wan-2x2x2-finetune --data stores/clips --out runs/second \
        --start tiny-wan-2x2x2

What finds hard cuts while caching is an extra, `longtake[cuts]`; without it, a store made with
`--set cache.cuts=false` serves as well, and targets may have cuts in them.
"""

from __future__ import annotations

from typing import cast

from attrs import evolve

from ..core.config.recipe import second_stage
from ..core.experiment import FinetuneSpec
from . import paper, tiny

HUNYUAN_2X2X1_FINETUNE = second_stage(paper.HUNYUAN_2X2X1)
HUNYUAN_2X2X2_FINETUNE = second_stage(paper.HUNYUAN_2X2X2)
HUNYUAN_2X2X4_FINETUNE = second_stage(paper.HUNYUAN_2X2X4)
HUNYUAN_4X4X2_FINETUNE = second_stage(paper.HUNYUAN_4X4X2)
WAN21_1_3B_2X2X1_FINETUNE = second_stage(paper.WAN21_1_3B_2X2X1)
WAN21_1_3B_2X2X2_FINETUNE = second_stage(paper.WAN21_1_3B_2X2X2)
WAN21_1_3B_2X2X4_FINETUNE = second_stage(paper.WAN21_1_3B_2X2X4)
WAN21_1_3B_4X4X2_FINETUNE = second_stage(paper.WAN21_1_3B_4X4X2)
WAN21_14B_2X2X1_FINETUNE = second_stage(paper.WAN21_14B_2X2X1)
WAN21_14B_2X2X2_FINETUNE = second_stage(paper.WAN21_14B_2X2X2)
WAN21_14B_2X2X4_FINETUNE = second_stage(paper.WAN21_14B_2X2X4)
WAN21_14B_4X4X2_FINETUNE = second_stage(paper.WAN21_14B_4X4X2)
WAN22_5B_2X2X1_FINETUNE = second_stage(paper.WAN22_5B_2X2X1)
WAN22_5B_2X2X2_FINETUNE = second_stage(paper.WAN22_5B_2X2X2)
WAN22_5B_2X2X4_FINETUNE = second_stage(paper.WAN22_5B_2X2X4)
WAN22_5B_4X4X2_FINETUNE = second_stage(paper.WAN22_5B_4X4X2)
WAN22_14B_2X2X1_FINETUNE = second_stage(paper.WAN22_14B_2X2X1)
WAN22_14B_2X2X2_FINETUNE = second_stage(paper.WAN22_14B_2X2X2)
WAN22_14B_2X2X4_FINETUNE = second_stage(paper.WAN22_14B_2X2X4)
WAN22_14B_4X4X2_FINETUNE = second_stage(paper.WAN22_14B_4X4X2)

TINY_WAN_2X2X2_FINETUNE = second_stage(tiny.TINY_WAN_2X2X2)
TINY_WAN_4X4X2_FINETUNE = second_stage(tiny.TINY_WAN_4X4X2)
HOW = cast("FinetuneSpec", TINY_WAN_2X2X2_FINETUNE.finetune)
TINY_WAN_FROZEN_ENCODER = evolve(
    TINY_WAN_2X2X2_FINETUNE,
    name="tiny-wan-2x2x2-finetune-frozen-encoder",
    finetune=evolve(HOW, encoder="frozen"),
)
TINY_WAN_WITHOUT_PRETRAINING = evolve(
    TINY_WAN_2X2X2_FINETUNE,
    name="tiny-wan-2x2x2-finetune-without-pretraining",
    finetune=evolve(HOW, start="none"),
)
