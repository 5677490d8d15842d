"""The budgets that every row of a table gets alike, and the experiments that follow from them."""

from __future__ import annotations

from attrs import evolve, frozen

from ...core.experiment import CacheSpec, Experiment, MeasureSpec
from ...core.grid import Size3
from ...core.lora import LoRA
from ...core.spec import BackboneSpec, MaskerSpec
from ...plugins.specs import Flow, Lpips, MeanFrame, Noise, Psnr, Ssim
from ..gpu_steps.tinier import tinier
from ..tiny_wan import TINY_WAN_4X4X2
from .rows import Row

ASPECT = (9, 16)


@frozen(kw_only=True)
class Budget:
    """What one row is given.

    Attributes:
        name: `full`, `small` or `tiny`.
        steps, batch: of Stage I, on LoRA and encoder over the Stage 0 base that ships.
        seconds: shortest and longest training window.
        seeds: runs of each row.
        sampling: steps of sampled retrieval beside the one-step one; 0: none.
        measured: seconds of history at which retrieval is measured.
    """

    name: str
    steps: int
    batch: int
    seconds: tuple[float, float]
    seeds: tuple[int, ...]
    sampling: int
    measured: float

    def experiment(self, row: Row, seed: int) -> Experiment:
        """Give the experiment of a row and a seed."""
        base = TINY_WAN_4X4X2
        train = evolve(
            base.train,
            steps=self.steps,
            batch=self.batch,
            seconds=self.seconds,
            seed=seed,
            adapter=LoRA(rank=128, alpha=384.0, seed=seed),
            gain_every=10**6,
            log_every=10,
            save_every=25,
            keep=1,
        )
        found = evolve(
            base,
            name=f"table1-{row.name}",
            compressors=(row.compressor,),
            masker=_masker(row),
            retrievers=(*self._retrievers(), MeanFrame()),
            metrics=(Psnr(), Ssim(), Lpips()),
            train=train,
            measure=MeasureSpec(seconds=self.measured, long_seconds=0.0, draws=4),
        )
        return evolve(tinier(found), name=found.name) if self.name == "tiny" else found

    def _retrievers(self) -> tuple[Flow, ...]:
        sampled = (Flow(steps=self.sampling),) if self.sampling else ()
        return (Flow(steps=1), *sampled)

    @property
    def backbone(self) -> BackboneSpec:
        """The backbone that all rows share."""
        return self._any.backbone

    @property
    def cache(self) -> CacheSpec:
        """How clips are cached, for training and for measuring."""
        return self._any.cache

    @property
    def _any(self) -> Experiment:
        return tinier(TINY_WAN_4X4X2) if self.name == "tiny" else TINY_WAN_4X4X2

    @property
    def history(self) -> Size3:
        """The latent size of the history that is measured, for a video of 16:9."""
        shapes = self.backbone.geometry
        height = round((self.cache.area * ASPECT[0] / ASPECT[1]) ** 0.5)
        width = self.cache.area // height
        return shapes.latent_size(frames=shapes.frames(self.measured), height=height, width=width)


FULL = Budget(
    name="full", steps=3000, batch=16, seconds=(4.0, 20.0), seeds=(0, 1, 2), sampling=20,
    measured=10.0,
)  # fmt: skip
SMALL = Budget(
    name="small", steps=200, batch=4, seconds=(4.0, 10.0), seeds=(0, 1), sampling=0, measured=10.0
)
TINY = Budget(
    name="tiny", steps=2, batch=2, seconds=(2.0, 2.0), seeds=(0, 1), sampling=0, measured=2.0
)
BUDGETS = {budget.name: budget for budget in (FULL, SMALL, TINY)}


def _masker(row: Row) -> MaskerSpec:
    return Noise(counts=(4,), clean=0.75, where="last" if row.last else "random")
