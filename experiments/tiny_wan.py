"""`tiny-wan`: the paper's Stage I on the embedded default, small enough for two CPU cores.

The DiT is trained from scratch together with the encoder (a tiny backbone has seen no video
before), so `trains` is `all`; on a pretrained backbone it would be `lora`. Training goes in two
parts: first on small frames, where a step is cheap, then on full ones:

    longtake pretrain tiny-wan-2x2x2-small --data stores/small --out runs/small
    longtake pretrain tiny-wan-2x2x2 --data stores/full --out runs/full --start runs/small
"""

from __future__ import annotations

from attrs import evolve

from ..backbones.specs import TinyWan
from ..core.experiment import CacheSpec, Experiment, MeasureSpec, TrainSpec
from ..core.grid import Rate
from ..plugins.specs import Conv, Flow, MeanFrame, Noise, Psnr, Ssim, Thumbnail, Upsample

SMALL, FULL = 72 * 128, 144 * 256  # pixels of a frame
R222 = Rate(height=2, width=2, time=2)
R442 = Rate(height=4, width=4, time=2)


def encoder(rate: Rate) -> Conv:
    """Give the encoder at widths that suit a DiT of 7 M parameters."""
    return Conv(rate=rate, channels=(32, 64, 96, 128), heads=4, head_width=32)


def tiny(rate: Rate) -> Experiment:
    """Give the tiny experiment on full frames at a compression rate."""
    return Experiment(
        name=f"tiny-wan-{rate}",
        backbone=TinyWan(heads=8, head_width=32),
        compressors=(encoder(rate),),
        masker=Noise(counts=(4,), clean=0.75),
        retrievers=(
            Flow(steps=1),
            Flow(steps=20),
            Upsample(rate=rate),
            Thumbnail(rate=rate),
            MeanFrame(),
        ),
        metrics=(Psnr(), Ssim()),
        cache=CacheSpec(area=FULL),
        train=TrainSpec(
            steps=700,
            batch=4,
            seconds=(4.0, 20.0),
            trains="all",
            optimizer="muon",
            rate=1e-3,
            warmup=30,
            decay=0.7,
            pure=0.5,
            weigh=1.0,
            precision="bf16",
            save_every=100,
        ),
        measure=MeasureSpec(seconds=10.0),
    )


def small(full: Experiment) -> Experiment:
    """Give the first part of an experiment's training: small frames, each also mirrored."""
    return evolve(
        full,
        name=f"{full.name}-small",
        cache=evolve(full.cache, area=SMALL, mirror=True, pixels=False),
        train=evolve(full.train, steps=1500, batch=8, decay=0.0, warmup=100, save_every=250),
    )


TINY_WAN_2X2X2 = tiny(R222)
TINY_WAN_4X4X2 = tiny(R442)
TINY_WAN_2X2X2_SMALL = small(TINY_WAN_2X2X2)
TINY_WAN_4X4X2_SMALL = small(TINY_WAN_4X4X2)
TINY_WAN_ONLY_LR = evolve(
    TINY_WAN_2X2X2,
    name="tiny-wan-2x2x2-only-lr",
    compressors=(evolve(encoder(R222), hr=False),),
)
TINY_WAN_WITHOUT_LR = evolve(
    TINY_WAN_2X2X2,
    name="tiny-wan-2x2x2-without-lr",
    compressors=(evolve(encoder(R222), lr=False),),
)
