"""What is fitted in closed form: a tiny Wan with one memory, and windows of a store."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import cast

import torch
from attrs import evolve, frozen
from einops import rearrange
from torch import Tensor

from ...backbones.wan.published import TinyWanBackbone
from ...backbones.wan.specs import TinyWan
from ...core.config.recipe import rate_of
from ...core.data.continuations import CutGrid
from ...core.data.store import Store, check_fits
from ...core.data.windows import Batch, WindowBatches, WindowSampler
from ...core.errors import UserError
from ...core.experiment import Experiment
from ...core.model import Model, build_model, compressor_needs
from ...core.train.loss import StageOne
from ...core.train.step import build_stage_one
from ...core.values.draws import Draws
from ...core.values.grid import Rate
from ...core.values.history import History
from ...core.values.memory import Part
from ...plugins.compressors.specs import Conv
from ...plugins.compressors.tokens import UNCOMPRESSED
from ..tiny import CROP

RIDGE = 1e-5  # of least squares, of the mean square of what is read
PLAIN = ("stem", "norm", "time_padding")  # of a conv, as `Conv` has them by default
# How much later than the latents in it a head looks for a token, by the rate in time. A head finds
# what is at most a quarter from there. Whole blocks stand at halves; a first token, of one latent,
# and one of the first latent of a block that has no more yet stand at that latent. They are found
# by who tells the earlier ones: the LR latent of such a block is still that of the block before.
TIMES = {1: (0.0,), 2: (0.25, -0.5), 4: (1.5, 0.25, -0.5, -1.5)}


@frozen(eq=False, kw_only=True)
class Fitting:
    """A model that is fitted in closed form, and the data that it is fitted to.

    Attributes:
        model: a tiny Wan of random weights with one compressor.
        stage: Stage I of it, at pure noise.
        batches: of windows, by number.
        count: how many of them are read.
    """

    model: Model
    stage: StageOne
    batches: WindowBatches
    count: int

    @classmethod
    def of(cls, experiment: Experiment, store: Store, count: int) -> Fitting:
        """Return what is fitted of an experiment, its windows cropped.

        Raises:
            UserError: `count` is below 1, the experiment is Stage II, its backbone is no tiny-wan
                of clean memory, it has not one compressor or one of a rate that its heads have no
                places for, a conv's convs are not the usual ones, its crops hold no whole tokens,
                or the store does not fit.
        """
        if count < 1:
            raise UserError(f"--batches {count}: 1 or more")
        train = evolve(
            experiment.train, steps=count, pure=1.0, memory_dropout=0.0, text_dropout=1.0,
            crop=experiment.train.crop if any(experiment.train.crop) else CROP, accumulate=1,
            trains="all", weigh=2.0,
        )  # fmt: skip
        backbone = from_scratch(experiment)
        experiment = evolve(experiment, backbone=backbone, train=train)
        model = build_model(experiment)
        _check(model)
        needs = compressor_needs(experiment)
        check_fits(experiment, store, needs.rates)
        windows = WindowSampler.of(store, backbone.geometry, train, needs)
        batches = WindowBatches(store, windows, needs, count)
        stage = build_stage_one(model, store.null_text())
        return cls(model=model, stage=stage.eval(), batches=batches, count=count)

    @property
    def backbone(self) -> TinyWanBackbone:
        """G."""
        return cast(TinyWanBackbone, self.model.backbone)

    @property
    def rate(self) -> Rate:
        """The rate of its tokens; 1x1x1 of a compressor that has none."""
        return rate_of(self.model.experiment) or UNCOMPRESSED

    def windows(self) -> Iterator[Batch]:
        """Yield the batches, one after the other."""
        return (self.batches[number] for number in range(self.count))

    def uncut(self, number: int, first: int, end: int) -> list[int]:
        """Return the samples of a batch without a known hard cut from a latent to before another.

        Args:
            number: of the batch.
            first: latent of the windows; a cut right before it does not count.
            end: latent behind the last one.
        """
        grid = CutGrid(period=1, stride=self.batches.store.stride, cuts_inside=False)
        found = []
        for place, window in enumerate(self.batches.windows.plan(number)):
            begin, behind = (grid.first_frame(window.start + latent) for latent in (first, end))
            shots = grid.shot_frames(window.record)
            if not any(begin < frame < behind for frame in shots):
                found.append(place)
        return found

    def patches(self, latents: Tensor) -> Tensor:
        """Return latents `[B, C, T, H, W]` as patches `[B, T, rows, columns, C·cells]`."""
        patch = self.backbone.geometry.patch
        return rearrange(
            latents.float(), "b c t (h i) (w j) -> b t h w (c i j)", i=patch.height, j=patch.width
        )

    def cells(self, history: History) -> tuple[Tensor, Tensor]:
        """Return the tokens `[N, D]` of whole blocks, and the patches they stand for.

        Returns:
            Tokens, and patches `[N, time · height · width · patch]` of a rate's cell around each;
            where a token covers less than a cell, as the first one does, those at its border
            stand for the others.
        """
        part, patches = self.model.encoder(history).parts[0], self.patches(history.latents)
        whole = history.start + (history.length - 1) // self.rate.time * self.rate.time
        real = part.valid & (part.last_covered <= whole.to(part.valid.device)[:, None])
        index = _around(part, self.rate)
        index[..., 0] -= history.start.double()[:, None, None]
        limits = torch.tensor(patches.shape[1:4]) - 1
        time, row, column = index.long().clamp(min=0).minimum(limits).unbind(-1)
        sample = torch.arange(len(patches))[:, None, None]
        found = patches[sample, time, row, column].flatten(2)
        return part.tokens[real], found[real]

    @torch.no_grad()
    def mean_loss(self) -> tuple[float, float]:
        """Return the loss from pure noise and clean history, and that of a guess of zero."""
        losses, zeros = [], []
        for number, batch in enumerate(self.windows()):
            draws = Draws.of(self.stage.spec.seed, number, batch.places, "loss")
            text = self.stage.drop_text(batch.text, draws)
            query = self.stage.masker.query(batch.history, text, draws)
            drawn = self.stage.draw_noise(query, draws)
            losses.append(self.stage.loss(query, self.stage.encoder(batch.history), drawn).mean())
            weights = self.stage.weights[None, :, None, None, None]
            zeros.append((query.targets.square() * weights).mean())
        return float(torch.stack(losses).mean()), float(torch.stack(zeros).mean())


def _around(part: Part, rate: Rate) -> Tensor:
    """Return the patches around each token within what it covers, `[B, N, places, 3]`."""
    sides = ([k - (n - 1) / 2 for k in range(n)] for n in (rate.time, rate.height, rate.width))
    offsets = torch.tensor(list(product(*sides)), dtype=torch.float64)
    middle, reach = part.positions[:, :, None], (part.extents[:, :, None] - 1) / 2
    index = (middle + offsets).round()
    return index.maximum((middle - reach).ceil()).minimum((middle + reach).floor())


def solve(squares: Tensor, products: Tensor) -> Tensor:
    """Return the least squares `[inputs, outputs]` of moments in float64, with a small ridge."""
    ridge = RIDGE * squares.diagonal().mean() * torch.eye(len(squares), dtype=squares.dtype)
    return cast(Tensor, torch.linalg.solve(squares + ridge, products).float())


def from_scratch(experiment: Experiment) -> TinyWan:
    """Return the backbone without weights.

    Raises:
        UserError: it is no tiny-wan of clean memory, or Stage II goes on from Stage I.
    """
    if experiment.finetune is not None:
        raise UserError(f"{experiment.name} is Stage II: it begins with what Stage I trained")
    backbone = experiment.backbone
    if not isinstance(backbone, TinyWan) or backbone.memory_time != 0:
        raise UserError("only tiny-wan with memory_time 0 begins in closed form")
    return evolve(backbone, weights=None, begin="local")


def _check(model: Model) -> None:
    backbone, specs = cast(TinyWanBackbone, model.backbone), model.experiment.compressors
    if len(specs) != 1:
        raise UserError(f"a memory of one compressor begins in closed form, not of {len(specs)}")
    spec = specs[0]
    if isinstance(spec, Conv) and spec.hr:
        plain = Conv()
        odd = [x for x in PLAIN if getattr(spec, x) != getattr(plain, x)]
        if odd:
            raise UserError(
                f"a conv begins in closed form with the usual {', '.join(PLAIN)}; not so here: "
                f"{', '.join(odd)}"
            )
    rate = rate_of(model.experiment) or UNCOMPRESSED
    heads = len(backbone.memory_blocks) * backbone.config.num_attention_heads
    places = rate.time * rate.height * rate.width
    if rate.time not in TIMES:
        raise UserError(f"{rate} tokens: a time rate of {rate.time} has no closed form, 1, 2, 4 do")
    if heads < places:
        raise UserError(f"{heads} heads in all are too few for the {places} patches of {rate}")
    crop, patch = model.experiment.train.crop, backbone.geometry.patch
    token = (rate.height * patch.height, rate.width * patch.width)
    if any(cells % step for cells, step in zip(crop, token, strict=True)):
        raise UserError(
            f"train.crop {list(crop)} holds no whole tokens of {rate}, which are {token[0]} "
            f"by {token[1]} latents"
        )
