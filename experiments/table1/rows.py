"""The rows of Table 1, and the budgets that all of them get alike.

Rows are the paper's, their peers at a like context length, and a control. A budget and a row make
an experiment.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

from attrs import evolve, frozen

from ...backbones.wan.specs import TinyWan
from ...core.config import from_json
from ...core.errors import UserError
from ...core.experiment import CacheSpec, Experiment, MeasureSpec
from ...core.interfaces.compressor import Length
from ...core.interfaces.spec import BackboneSpec, CompressorSpec, LoRA
from ...core.registry import plug_in, registry
from ...core.values.grid import Geometry, Rate, Size3
from ...core.video.placement import place
from ...plugins.compressors.specs import Conv, Merge, Patchifier, Pool, Window
from ...plugins.maskers.specs import Noise
from ...plugins.metrics.specs import Lpips, Psnr, Ssim
from ...plugins.retrievers.specs import Flow, MeanFrame
from ..common import tinier
from ..tiny import CROP, TINY_BASE_4X4X2, TINY_WAN_4X4X2
from ..tiny import FULL as FULL_AREA

R442 = Rate(height=4, width=4, time=2)
R222 = Rate(height=2, width=2, time=2)


@frozen(kw_only=True)
class PaperFigures:
    """What the paper reports for a row, on its own data and backbone (method.md §6)."""

    psnr: float
    ssim: float
    lpips: float


@frozen(kw_only=True)
class TableRow:
    """One way to carry history.

    Attributes:
        name: of its folders, and what the command line calls it.
        title: as printed.
        compressor: its memory.
        paper: the paper's figures, where it has them.
        last: trained with Ω always at the end of the window: the control that shows the cheat.
    """

    name: str
    title: str
    compressor: CompressorSpec
    paper: PaperFigures | None = None
    last: bool = False

    def tokens(self, geometry: Geometry, size: Size3) -> Length:
        """Return the context length of a history of `size` latents."""
        compressor = registry().load(self.compressor)
        length: Length = compressor.context_length(self.compressor, geometry, size)
        return length


def rows(geometry: Geometry, size: Size3) -> list[TableRow]:
    """Return all rows; those beside the paper's hold about as many tokens as Proposed 2×2×2.

    Args:
        geometry: of the backbone.
        size: of the history, in latents, at which context lengths are matched.
    """
    return [*paper_rows(), *peer_rows(geometry, size), control_row()]


def paper_rows() -> list[TableRow]:
    """Return the seven rows of the paper's Table 1, in its order."""
    return [
        _row("patchifier-4x4x2", "Large Patchifier", PATCHIFIER, (12.93, 0.412, 0.365)),
        _row("only-lr-4x4x2", "Only LR", _conv("4x4x2", hr=False), (15.21, 0.472, 0.212)),
        _row("without-lr-4x4x2", "Without LR", _conv("4x4x2", lr=False), (15.73, 0.423, 0.198)),
        _row("proposed-4x4x2", "Proposed 4×4×2", _conv("4x4x2"), (17.41, 0.596, 0.171)),
        _row("proposed-2x2x2", "Proposed 2×2×2", _conv("2x2x2"), (19.12, 0.683, 0.152)),
        _row("proposed-2x2x4", "Proposed 2×2×4", _conv("2x2x4"), (18.63, 0.637, 0.153)),
        # whose third conv has 256 numbers to pass on, where the others have 128
        _row("proposed-2x2x1", "Proposed 2×2×1", WIDER, (20.19, 0.705, 0.121)),
    ]


def peer_rows(geometry: Geometry, size: Size3) -> list[TableRow]:
    """Return other ways to carry history, at the context length of Proposed 2×2×2.

    `window` holds whole latents: as many as fit, three at 10 s of 16:9.
    """
    budget = _row("", "", _conv("2x2x2")).tokens(geometry, size).tokens
    grid = Rate(height=1, width=1, time=1).token_grid(size, geometry.patch)
    latents = max(1, budget // (grid.height * grid.width))
    return [
        _row("window", "Sliding window", Window(latents=latents)),
        _row("merge-2x2x2", "Token merging", Merge(rate=R222)),
        _row("pool-2x2x2", "Mean pooling", Pool(rate=R222)),
    ]


def control_row() -> TableRow:
    """Return Proposed 4×4×2 trained with Ω always at the end of the window."""
    return TableRow(
        name="fixed-last-4x4x2",
        title="Proposed 4×4×2, Ω fixed last",
        compressor=_conv("4x4x2"),
        last=True,
    )


def user_row(text: str) -> TableRow:
    """Return the row of a user's compressor: a file of plugins, a plugin's name, or a JSON spec.

    A file must offer one compressor by its hook. A `name` in the JSON is the row's; without one
    it is the plugin's.

    Raises:
        UserError: no compressor has that name, or its spec or file is faulty.
    """
    data: Any = {"type": _name_in_file(Path(text)) if text.endswith(".py") else text}
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--add {text}: no JSON: {error}") from error
    if not isinstance(data, dict) or "type" not in data:
        raise UserError(f'--add {text}: a spec is an object with a "type", a compressor\'s name')
    name = str(data.pop("name", data["type"]))
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"--add: a row's name is letters, digits and . + - _, not {name!r}")
    return TableRow(name=name, title=name, compressor=from_json(data, CompressorSpec))


def backbone(text: str) -> BackboneSpec:
    """Return the backbone that a user names: a plugin's name, or a JSON spec with its `type`.

    Raises:
        UserError: no backbone has that name, or its spec is faulty.
    """
    data: Any = text
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"--backbone {text}: no JSON: {error}") from error
    return from_json(data, BackboneSpec)


def _name_in_file(path: Path) -> str:
    """Load a file of plugins, and return the name of its compressor."""
    before = {plugin.name for plugin in registry().of("compressor")}
    plug_in(path)
    new = [p.name for p in registry().of("compressor") if p.name not in before]
    if len(new) != 1:
        raise UserError(f"--add {path}: one compressor is wanted of a file, it has {len(new)}")
    return new[0]


def _row(
    name: str,
    title: str,
    compressor: CompressorSpec,
    paper: tuple[float, float, float] | None = None,
) -> TableRow:
    figures = PaperFigures(psnr=paper[0], ssim=paper[1], lpips=paper[2]) if paper else None
    return TableRow(name=name, title=title, compressor=compressor, paper=figures)


def _conv(rate: str, *, lr: bool = True, hr: bool = True) -> Conv:
    """Return the encoder of `tiny-wan` at a rate."""
    encoder = cast("Conv", TINY_WAN_4X4X2.compressors[0])
    return evolve(encoder, rate=Rate.parse(rate), lr=lr, hr=hr)


WIDER = evolve(_conv("2x2x1"), channels=(48, 96, 256, 320))
# tokens spaced as those of the encoder of `tiny-wan`, so that rows differ in what tokens hold
PATCHIFIER = Patchifier(rate=R442, rounding=_conv("4x4x2").rounding)
FULL_HD = (1920, 1080)  # width and height of a common video


@frozen(kw_only=True)
class TableBudget:
    """How much training and measuring every row gets.

    Attributes:
        name: `full`, `small` or `tiny`.
        batches: of windows, that a row begins in closed form with.
        reader_steps, reader_batch, reader_seconds: of another DiT, which all rows share (`reader`).
        steps, batch: of Stage I, on LoRA and encoder over that DiT.
        seconds: shortest and longest training window.
        crop: latent rows and columns of it; zeros: all.
        seeds: runs of each row.
        area: pixels of a frame.
        rank: of the LoRA. 128 is the paper's, of a DiT 8 times as wide as the tiny one.
        pure: share of samples at t = 1, from which one-step retrieval starts.
        sampling: steps of sampled retrieval beside the one-step one; 0: none.
        measured: seconds of history at which retrieval is measured.
        dit: the backbone that all rows share; None: `tiny-wan`.
    """

    name: str
    batches: int
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
    crop: tuple[int, int]
    dit: BackboneSpec | None = None

    def experiment(self, row: TableRow, seed: int) -> Experiment:
        """Return the experiment of a row and a seed."""
        base = self.shared
        train = evolve(
            base.train,
            steps=self.steps,
            batch=self.batch,
            seconds=self.seconds,
            seed=seed,
            adapter=LoRA(rank=self.rank, alpha=3.0 * self.rank, seed=seed),
        )
        experiment = evolve(
            base,
            name=f"table1-{row.name}",
            compressors=(row.compressor,),
            masker=masker(last=row.last),
            retrievers=(*self._retrievers(), MeanFrame()),
            metrics=(Psnr(), Ssim(), Lpips()),
            train=train,
            measure=MeasureSpec(seconds=self.measured, long_seconds=0.0, draws=4),
        )
        if self.name == "tiny":
            experiment = evolve(tinier(experiment), name=experiment.name)
        return self._on_dit(experiment)

    def _on_dit(self, experiment: Experiment) -> Experiment:
        return experiment if self.dit is None else evolve(experiment, backbone=self.dit)

    def _retrievers(self) -> tuple[Flow, ...]:
        sampled = (Flow(steps=self.sampling),) if self.sampling else ()
        return (Flow(steps=1), *sampled)

    @property
    def backbone(self) -> BackboneSpec:
        """The backbone that all rows share."""
        return self.shared.backbone

    @property
    def closed_form(self) -> bool:
        """Whether rows begin in closed form: `tiny-wan` of its own size does, without weights."""
        dit = self.dit or TINY_BASE_4X4X2.backbone
        return (
            self.name != "tiny"
            and isinstance(dit, TinyWan)
            and dit.weights is None
            and dit.memory_time == 0
        )

    @property
    def cache(self) -> CacheSpec:
        """How clips are cached, for training and for measuring."""
        return self.shared.cache

    @property
    def shared(self) -> Experiment:
        """What all experiments of the table share: the size of frames, times, logs and saves."""
        base = TINY_BASE_4X4X2  # whose DiT has no weights, and so no rate that it was begun for
        begun = TINY_WAN_4X4X2.train if self.closed_form else base.train
        train = evolve(
            begun, warmup=min(begun.warmup, self.steps // 2), pure=self.pure, gain_every=10**6,
            log_every=10, save_every=25, keep=1, trains="lora", crop=self.crop,
        )  # fmt: skip
        experiment = evolve(base, train=train, cache=evolve(base.cache, area=self.area))
        return self._on_dit(tinier(experiment) if self.name == "tiny" else experiment)

    @property
    def history(self) -> Size3:
        """The latent size of the history that is measured, of a video of 16:9 as it is cached."""
        shapes, frames = self.backbone.geometry, self.backbone.geometry.frames(self.measured)
        fitted = place(*FULL_HD, self.cache.area, shapes.multiple)
        return shapes.latent_size(frames=frames, height=fitted.height, width=fitted.width)


FULL = TableBudget(
    name="full", area=FULL_AREA, rank=128, pure=0.5, sampling=20, measured=10.0, batches=400,
    reader_steps=2000, reader_batch=32, reader_seconds=(2.0, 10.0),
    steps=3000, batch=16, seconds=(4.0, 20.0), seeds=(0, 1, 2), crop=(0, 0),
)  # fmt: skip
SMALL = TableBudget(
    name="small", area=FULL_AREA, rank=32, pure=1.0, sampling=0, measured=10.0, batches=80,
    reader_steps=250, reader_batch=16, reader_seconds=(2.0, 3.0),
    steps=20, batch=4, seconds=(4.0, 12.0), seeds=(0, 1), crop=CROP,
)  # fmt: skip
TINY = TableBudget(
    name="tiny", area=FULL_AREA, rank=2, pure=0.5, sampling=0, measured=2.0, batches=2,
    reader_steps=1, reader_batch=2, reader_seconds=(2.0, 2.0),
    steps=2, batch=2, seconds=(2.0, 2.0), seeds=(0, 1), crop=(0, 0),
)  # fmt: skip
BUDGETS = {budget.name: budget for budget in (FULL, SMALL, TINY)}


def masker(*, last: bool = False) -> Noise:
    """Return the masker of all rows; the control's has Ω always last."""
    return Noise(counts=(4,), clean=0.75, where="last" if last else "random")
