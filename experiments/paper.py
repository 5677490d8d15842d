"""The paper's Stage I on each backbone at each of its rates: `wan22-5b-2x2x2` and so on.

All that depends on the backbone is in its recipe (`backbones/specs.py`): `--set backbone=wan22-5b`
turns any of these into the one that ships for it. What is alike on all of them stands here: LoRA of
rank 128 and the encoder train together; all frames but Ω, which is random, are masked by noise of a
level L(0.2, 1); captions are fed (method.md §3).

On fewer GPUs than eight, `--set train.accumulate=8` takes the same steps in less memory; what is to
be measured is cached with `--set cache.pixels=true`.
"""

from __future__ import annotations

from ..backbones.hunyuan.specs import Hunyuan
from ..backbones.wan.specs import Wan21Large, Wan21Small, Wan22Dense5B, Wan22Moe14B
from ..core.config.recipe import from_recipe, recipe_of, retrievers_of, targets_of
from ..core.experiment import Experiment, MeasureSpec, Target, TrainSpec
from ..core.interfaces.spec import BackboneSpec, LoRA
from ..core.values.grid import Rate
from ..plugins.compressors.specs import Conv
from ..plugins.hooks import longtake_retrievers
from ..plugins.maskers.specs import Noise
from ..plugins.metrics.specs import HighBand, Lpips, MsSsim, Psnr, Ssim

RATES = ("2x2x1", "2x2x2", "2x2x4", "4x4x2")
RETRIEVERS = {plugin.name: plugin.spec for plugin in longtake_retrievers()}
# PSNR of retrieval in dB by rate, arXiv 2512.23851, Table 1.
PSNR = {"2x2x1": 20.19, "2x2x2": 19.12, "2x2x4": 18.63, "4x4x2": 17.41}
DETAIL = Target(metric="high-band", low=0.8, high=1.2)  # within a fifth of the original's energy


def _published(rate: str, psnr: float) -> Target:
    source = f"the paper at {rate} (a large backbone on other data: a yardstick, no comparison)"
    return Target(metric="psnr", low=psnr, rate=Rate.parse(rate), source=source)


# What samples are held to: the paper's figure where it has the rate, and detail.
TARGETS = (*(_published(rate, psnr) for rate, psnr in PSNR.items()), DETAIL)


def paper(name: str, backbone: BackboneSpec, rate: Rate) -> Experiment:
    """Return Stage I on a backbone at a rate; all else is alike, so that rates can be compared."""
    recipe = recipe_of(backbone)
    return from_recipe(
        Experiment(
            name=name,
            backbone=backbone,
            compressors=(Conv(rate=rate),),
            masker=Noise(low=0.2),
            retrievers=retrievers_of(recipe, rate, RETRIEVERS.__getitem__),
            metrics=(Psnr(), Ssim(), MsSsim(), HighBand(factor=8), Lpips()),
            train=TrainSpec(trains="lora", adapter=LoRA(rank=128)),
            measure=MeasureSpec(targets=(*TARGETS, *targets_of(recipe))),
        )
    )


def paper_at_all_rates(
    name: str, backbone: BackboneSpec
) -> tuple[Experiment, Experiment, Experiment, Experiment]:
    """Return the experiments of a backbone, `name-2x2x1` and so on, in the order of `RATES`."""
    one, two, three, four = (paper(f"{name}-{r}", backbone, Rate.parse(r)) for r in RATES)
    return one, two, three, four


# Wan 2.2's are those that the paper trains: 20 s of 480×832 have about 5k tokens at 2×2×2 on the
# 5B, whose VAE is 16×, and at 4×4×2 on the high-noise expert of the 14B. The 1.3B is the smallest
# of the published backbones, and so the cheapest real one to begin with.
HUNYUAN_2X2X1, HUNYUAN_2X2X2, HUNYUAN_2X2X4, HUNYUAN_4X4X2 = paper_at_all_rates(
    "hunyuan", Hunyuan()
)
WAN21_1_3B_2X2X1, WAN21_1_3B_2X2X2, WAN21_1_3B_2X2X4, WAN21_1_3B_4X4X2 = paper_at_all_rates(
    "wan21-1.3b", Wan21Small()
)
WAN21_14B_2X2X1, WAN21_14B_2X2X2, WAN21_14B_2X2X4, WAN21_14B_4X4X2 = paper_at_all_rates(
    "wan21-14b", Wan21Large()
)
WAN22_5B_2X2X1, WAN22_5B_2X2X2, WAN22_5B_2X2X4, WAN22_5B_4X4X2 = paper_at_all_rates(
    "wan22-5b", Wan22Dense5B()
)
WAN22_14B_2X2X1, WAN22_14B_2X2X2, WAN22_14B_2X2X4, WAN22_14B_4X4X2 = paper_at_all_rates(
    "wan22-14b", Wan22Moe14B()
)
BACKBONES = ("wan21-1.3b", "wan21-14b", "wan22-5b", "wan22-14b", "hunyuan")
