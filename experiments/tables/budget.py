"""The budgets that every row of a table gets alike, and the experiments that follow from them."""

from __future__ import annotations

from attrs import evolve, frozen

from ...core.data.bucket import place
from ...core.experiment import CacheSpec, Experiment, MeasureSpec
from ...core.grid import Size3
from ...core.lora import LoRA
from ...core.spec import BackboneSpec
from ...plugins.specs import Flow, Lpips, MeanFrame, Noise, Psnr, Ssim
from ..gpu_steps.tinier import tinier
from ..tiny_wan import FULL as WHOLE
from ..tiny_wan import TINY_WAN_4X4X2
from .rows import Row

FULL_HD = (1920, 1080)  # width and height of a common video


@frozen(kw_only=True)
class Budget:
    """What one row is given.

    Attributes:
        name: `full`, `small` or `tiny`.
        reader_steps, reader_batch, reader_seconds: of the DiT that all rows share (`reader`).
        steps, batch: of Stage I, on LoRA and encoder over that DiT.
        seconds: shortest and longest training window.
        seeds: runs of each row.
        area: pixels of a frame.
        rank: of the LoRA. 128 is the paper's, of a DiT 12 times as wide as the tiny one.
        pure: share of samples at t = 1, from which one-step retrieval starts.
        sampling: steps of sampled retrieval beside the one-step one; 0: none.
        measured: seconds of history at which retrieval is measured.
    """

    name: str
    reader_steps: int
    reader_batch: int
    reader_seconds: tuple[float, float]
    steps: int
    batch: int
    seconds: tuple[float, float]
    seeds: tuple[int, ...]
    area: int
    rank: int
    pure: float
    sampling: int
    measured: float

    def experiment(self, row: Row, seed: int) -> Experiment:
        """Give the experiment of a row and a seed."""
        base = self.shared
        train = evolve(
            base.train,
            steps=self.steps,
            batch=self.batch,
            seconds=self.seconds,
            seed=seed,
            adapter=LoRA(rank=self.rank, alpha=3.0 * self.rank, seed=seed),
        )
        found = evolve(
            base,
            name=f"table1-{row.name}",
            compressors=(row.compressor,),
            masker=masker(last=row.last),
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
        return self.shared.backbone

    @property
    def cache(self) -> CacheSpec:
        """How clips are cached, for training and for measuring."""
        return self.shared.cache

    @property
    def shared(self) -> Experiment:
        """What all experiments of the table share: the size of frames, times, logs and saves."""
        base = TINY_WAN_4X4X2
        train = evolve(
            base.train, pure=self.pure, gain_every=10**6, log_every=10, save_every=25, keep=1
        )
        found = evolve(base, train=train, cache=evolve(base.cache, area=self.area))
        return tinier(found) if self.name == "tiny" else found

    @property
    def history(self) -> Size3:
        """The latent size of the history that is measured, of a video of 16:9 as it is cached."""
        shapes, frames = self.backbone.geometry, self.backbone.geometry.frames(self.measured)
        fitted = place(*FULL_HD, self.cache.area, shapes.multiple)
        return shapes.latent_size(frames=frames, height=fitted.height, width=fitted.width)


FULL = Budget(
    name="full", area=WHOLE, rank=128, pure=0.5, sampling=20, measured=10.0,
    reader_steps=2000, reader_batch=32, reader_seconds=(2.0, 10.0),
    steps=3000, batch=16, seconds=(4.0, 20.0), seeds=(0, 1, 2),
)  # fmt: skip
SMALL = Budget(
    name="small", area=64 * 112, rank=32, pure=1.0, sampling=0, measured=10.0,
    reader_steps=250, reader_batch=16, reader_seconds=(2.0, 3.0),
    steps=120, batch=8, seconds=(4.0, 10.0), seeds=(0, 1),
)  # fmt: skip
TINY = Budget(
    name="tiny", area=WHOLE, rank=2, pure=0.5, sampling=0, measured=2.0,
    reader_steps=1, reader_batch=2, reader_seconds=(2.0, 2.0),
    steps=2, batch=2, seconds=(2.0, 2.0), seeds=(0, 1),
)  # fmt: skip
BUDGETS = {budget.name: budget for budget in (FULL, SMALL, TINY)}


def masker(*, last: bool = False) -> Noise:
    """Give the masker of all rows; the control's has Ω always last."""
    return Noise(counts=(4,), clean=0.75, where="last" if last else "random")
