"""A tiny store made by the real cache, and a result measured on it with oracles beside Flow."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from attrs import frozen

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.wan.specs import TinyWan
from longtake.core.cache.cache import cache
from longtake.core.data.store import Store
from longtake.core.experiment import CacheSpec, Experiment, MeasureSpec, Target
from longtake.core.hooks import Plugin
from longtake.core.interfaces.metric import Metric
from longtake.core.interfaces.retriever import LatentFrames, PixelFrames, Retriever
from longtake.core.interfaces.spec import MetricSpec, RetrieverSpec
from longtake.core.measure.measure import measure
from longtake.core.measure.prepare import MeasureSetup
from longtake.core.measure.strips import make_sliders, make_strips
from longtake.core.model import all_needs, build_model
from longtake.core.registry import registry
from longtake.core.values.grid import Rate
from longtake.core.video.write import write_video
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.maskers.specs import Noise
from longtake.plugins.metrics.specs import HighBand, Psnr, Ssim
from longtake.plugins.retrievers.specs import (
    Flow,
    MeanFrame,
    Thumbnail,
    Upsample,  # fmt: skip
)

HOSTILE = '<script>alert("x")</script> & <img src=http://x.test/a.png>'
RATE = Rate(height=2, width=2, time=2)
PAPER = "the paper (a large backbone on other data: a yardstick, no comparison)"
TARGETS = (
    *(
        Target(metric="psnr", low=low, rate=Rate.parse(rate), source=PAPER)
        for rate, low in {"4x4x2": 17.41, "2x2x2": 19.12, "2x2x4": 18.63, "2x2x1": 20.19}.items()
    ),
    Target(metric="high-band", low=0.8, high=1.2),
    Target(metric="psnr", low=1.0, over="mean-frame"),
)


@frozen(kw_only=True)
class Oracle(RetrieverSpec):
    """Knows the true latents."""


@frozen(kw_only=True)
class Snow(RetrieverSpec):
    """Gives noise for frames."""


@frozen(kw_only=True)
class Broken(RetrieverSpec):
    """Gives no numbers."""


@frozen(kw_only=True)
class Wanting(MetricSpec):
    """Needs what no machine has."""


@frozen(kw_only=True)
class Failing(MetricSpec):
    """Fails in one way of many."""

    way: str = "raises late"


@frozen(kw_only=True)
class Crooked(RetrieverSpec):
    """Gives latents of another size."""


class OracleRetriever(Retriever[Oracle]):
    samples = True

    def __call__(self, scene, omega, generator):
        return LatentFrames(latents=scene.history.latents[:, :, omega[0]])


class SnowRetriever(Retriever[Snow]):
    learned = False

    def __call__(self, scene, omega, generator):
        count = sum(1 if i == 0 else 4 for i in omega[0].tolist())
        size = scene.history.pixels.shape[-2:]
        return PixelFrames(pixels=torch.rand((1, 3, count, *size), generator=generator) * 2 - 1)


class BrokenRetriever(Retriever[Broken]):
    def __call__(self, scene, omega, generator):
        return LatentFrames(latents=scene.history.latents[:, :, omega[0]] * float("nan"))


class WantingMetric(Metric[Wanting]):
    title = "WANTED"

    def missing(self):
        return "a <b>crystal</b> ball"

    def __call__(self, reference, result):
        raise AssertionError("what cannot run is never called")


class FailingMetric(Metric[Failing]):
    def __init__(self, spec):
        self.way, self.calls = spec.way, 0  # and no super().__init__(spec): it has no spec
        if spec.way == "is not built":
            raise OSError("no such model")

    @property
    def title(self):
        return self.name() if self.way == "has no title" else "FAILING"

    def missing(self):
        return self.nothing if self.way == "cannot tell" else ""

    def weight(self, reference):
        return torch.full((len(reference),), 0.0 if self.way == "weighs nothing" else 1.0)

    def __call__(self, reference, result):
        self.calls += 1
        if self.way == "raises late" and self.calls > 40:
            raise KeyError("what\nnow")
        figures = result.mean(dim=(1, 2, 3))
        if self.way == "is none":
            return figures * float("nan")
        return figures[:1].mean() if self.way == "is one number" else figures


class CrookedRetriever(Retriever[Crooked]):
    def __call__(self, scene, omega, generator):
        return LatentFrames(latents=scene.history.latents[:, :, omega[0], :-1])


@pytest.fixture(scope="session")
def oracles():
    """The retrievers and the metric above, findable like any plugin."""
    module = ModuleType("longtake_test_oracles")
    made = {
        Oracle: OracleRetriever, Snow: SnowRetriever, Broken: BrokenRetriever,
        Wanting: WantingMetric, Failing: FailingMetric, Crooked: CrookedRetriever,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        for spec, cls in made.items():
            setattr(module, cls.__name__, cls)
            name, target = spec.__name__.lower(), f"{module.__name__}:{cls.__name__}"
            record = Plugin(name=name, summary="of tests", spec=spec, target=target)
            patch.setitem(registry().plugins, (spec.kind, name), record)
            patch.setitem(registry().origins, (spec.kind, name), "tests")
        yield


@pytest.fixture(scope="session")
def experiment(oracles):
    return Experiment(
        name="tiny-test",
        backbone=TinyWan(
            heads=2, head_width=12, layers=1, ffn=32, codec=Dct(channels=48), begin="diffusers"
        ),
        compressors=(Conv(rate=RATE, channels=(4, 4, 8, 8), heads=1, head_width=8),),
        masker=Noise(),
        retrievers=(
            Oracle(), Flow(), Upsample(rate=RATE), Thumbnail(rate=RATE), MeanFrame(), Snow(),
        ),
        metrics=(Psnr(), Ssim(), HighBand(), Wanting()),
        cache=CacheSpec(area=64 * 96, min_seconds=1.0, mirror=True),
        measure=MeasureSpec(seconds=2.0, long_seconds=2.7, draws=2, targets=TARGETS),
    )  # fmt: skip


def frames(seed, count):
    """A square that moves over a gradient of its own colour."""
    rng = np.random.default_rng(seed)
    ground = np.linspace(20, 200, 96)[None, :, None] * rng.uniform(0.3, 1.0, 3)
    for number in range(count):
        picture = np.repeat(ground, 64, axis=0)
        picture[10:34, 3 * number : 3 * number + 20] = 240
        yield picture.astype(np.uint8)


@pytest.fixture(scope="session")
def store(tmp_path_factory, experiment):
    """Clips a, b and c of one length, c like a; d is short; each mirrored, too."""
    root = tmp_path_factory.mktemp("measure")
    for name, seed, count in (("a", 1, 24), ("b", 2, 24), ("c", 1, 24), ("d", 3, 10)):
        write_video(root / "videos" / f"{name}.mp4", frames(seed, count), fps=8)
    (root / "videos" / "b.txt").write_text(HOSTILE)
    (root / "videos" / "c.txt").write_text("a")
    (root / "videos" / "a.txt").write_text("a")
    needs = all_needs(experiment)
    cache(
        experiment, root / "videos", root / "store", rates=needs.rates, pixels=True,
        device=torch.device("cpu"),
    )  # fmt: skip
    return Store.open(root / "store")


@pytest.fixture(scope="session")
def model(experiment):
    torch.manual_seed(0)  # whatever ran before: figures are to be the same
    return build_model(experiment)


@pytest.fixture(scope="session")
def measure_setup(model, store):
    return MeasureSetup.build(model, store)


@pytest.fixture(scope="session")
def result(measure_setup):
    return measure(measure_setup, run="runs/x", step=12)


@pytest.fixture(scope="session")
def strips(measure_setup, result):
    return make_strips(measure_setup, result, clips=3, frames=3)


@pytest.fixture(scope="session")
def sliders(measure_setup, result):
    return make_sliders(measure_setup, result, clips=2, frames=5)
