"""`tiny-wan`: the paper's Stage I on the embedded default, small enough for two CPU cores.

The DiT is trained from scratch together with the encoder (a tiny backbone has seen no video
before), so `trains` is `all`; on a pretrained backbone it would be `lora`.
"""

from __future__ import annotations

from attrs import evolve

from ..backbones.specs import TinyWan
from ..core.experiment import CacheSpec, Experiment, MeasureSpec, TrainSpec
from ..core.grid import Rate
from ..plugins.specs import Conv, Flow, MeanFrame, Noise, Psnr, Ssim, Thumbnail, Upsample


def tiny(rate: Rate) -> Experiment:
    """Give the tiny experiment at a compression rate."""
    return Experiment(
        name=f"tiny-wan-{rate}",
        backbone=TinyWan(heads=8, head_width=32),
        compressors=(Conv(rate=rate, channels=(32, 64, 96, 128), heads=4, head_width=32),),
        masker=Noise(counts=(4,), clean=0.75),
        retrievers=(
            Flow(steps=1),
            Flow(steps=20),
            Upsample(rate=rate),
            Thumbnail(rate=rate),
            MeanFrame(),
        ),
        metrics=(Psnr(), Ssim()),
        cache=CacheSpec(area=96 * 160, min_seconds=4.0, pixels=True),
        train=TrainSpec(
            steps=4000,
            batch=8,
            seconds=(4.0, 20.0),
            trains="all",
            rate=1e-3,
            warmup=100,
            decay=0.3,
            pure=0.5,
            weigh=1.0,
            precision="bf16",
            save_every=250,
        ),
        measure=MeasureSpec(seconds=10.0),
    )


TINY_WAN_2X2X2 = tiny(Rate(height=2, width=2, time=2))
TINY_WAN_4X4X2 = tiny(Rate(height=4, width=4, time=2))
TINY_WAN_ONLY_LR = evolve(
    TINY_WAN_2X2X2,
    name="tiny-wan-2x2x2-only-lr",
    compressors=(Conv(rate=Rate(height=2, width=2, time=2), hr=False),),
)
TINY_WAN_WITHOUT_LR = evolve(
    TINY_WAN_2X2X2,
    name="tiny-wan-2x2x2-without-lr",
    compressors=(
        Conv(
            rate=Rate(height=2, width=2, time=2),
            channels=(32, 64, 96, 128),
            heads=4,
            head_width=32,
            lr=False,
        ),
    ),
)
