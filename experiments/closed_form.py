"""Begin a tiny memory in closed form: minutes of linear algebra before any step of training.

    python -m longtake.experiments.closed_form tiny-wan-2x2x2 --data stores/clips --out runs/start

A DiT from scratch spends hours on learning where memory is and how to copy from it, and an encoder
on becoming a good linear code; both have answers in closed form. This

1. makes each conv of the encoder keep the principal components of what it reads (in the pixels'
   metric), its SiLU nearly linear, and writes them beside the LR latents' numbers in a token;
2. finds the linear map from a token to each patch of latents that it stands for (least squares);
3. gives each place in a token's cell heads that look there (`backbones.wan.published`), and those
   left over the newest token at each place of a row and column, which is what a video goes on from:
   their values are that place's map, their outputs least squares again, on what attention really
   reads of frames in the past and of frames behind it.

`--out` is a run like any other. `pretrain` goes on from it:

    longtake pretrain tiny-wan-2x2x2 --data stores/clips --out runs/first --start runs/start \
        --set backbone.weights=runs/start/checkpoint-0/backbone

`--out` is a new folder. Exit 2: bad input.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from einops import rearrange
from torch import Tensor, nn

from ..backbones.wan.published import TinyWanBackbone, direction
from ..backbones.wan.specs import TinyWan
from ..core.config import load_experiment
from ..core.data.store import Store, check_fits
from ..core.data.windows import Batch, WindowBatches, WindowSampler
from ..core.errors import LongtakeError, UserError
from ..core.experiment import Experiment
from ..core.model import Model, build_model, compressor_needs
from ..core.plugin_errors import exit_code
from ..core.tools.files import check_out_folder, only_parts, whole_folder, write_json
from ..core.train.checkpoint import save_model
from ..core.train.loss import StageOne
from ..core.train.pretrain import begin_run
from ..core.train.step import build_stage_one
from ..core.values.draws import Draws
from ..core.values.grid import Rate
from ..core.values.history import History
from ..plugins.compressors.conv import ConvCompressor
from ..plugins.compressors.conv_layers import CausalConv, FrameAttention
from ..plugins.compressors.specs import Conv
from .common import command_line
from .tiny import CROP

OFFSET, SPREAD = 1.0, 0.5  # of a conv's strongest component before SiLU: there it is about linear
LEAST = 1e-4  # spread of a component, of the strongest's: few windows have components of nothing
AMPLITUDE = 2.0  # of the strongest component in a token; a weaker one has the root of its share
DRAWN = 4000  # cells of a window batch that components are taken from
RIDGE = 1e-5  # of least squares, of the mean square of what is read
# Weights of frequencies by which a head looks back. Of time, with periods of 20, 63 and 200 latents
# in a head of 48: the newest token weighs most up to a dozen latents later, and that of its own
# cell where it is among them. Of space so much that no time makes up for the wrong place.
BACK = ({1: 0.55, 2: 1.0, 3: 1.0}, {0: 1.7, 1: 1.7, 2: 1.7}, {0: 1.7, 1: 1.7, 2: 1.7})
NOWHERE = 0.93  # of a perfect match: how near a token of noise is to its own query there
AHEAD = 8  # latents behind a past that outputs are fitted to, at most
PLAIN = ("lr", "hr", "stem", "norm", "time_padding")  # as `Conv` has them by default
FACTS = "closed-form.json"  # beside a run's spec: how it began
SLOPE = torch.sigmoid(torch.tensor(OFFSET)).item() * (
    1 + OFFSET * (1 - torch.sigmoid(torch.tensor(OFFSET)).item())
)  # of SiLU there


@frozen(eq=False, kw_only=True)
class Fitting:
    """A model that is fitted in closed form, and the data that it is fitted to.

    Attributes:
        model: a tiny Wan whose one compressor is `conv`, of random weights.
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
                of clean memory, its compressor no plain conv of both branches at a rate that its
                heads have places for, its crops hold no whole tokens, or the store does not fit.
        """
        if count < 1:
            raise UserError(f"--batches {count}: 1 or more")
        train = evolve(
            experiment.train, steps=count, pure=1.0, memory_dropout=0.0, text_dropout=1.0,
            crop=experiment.train.crop if any(experiment.train.crop) else CROP, accumulate=1,
            trains="all", weigh=2.0,
        )  # fmt: skip
        backbone = _from_scratch(experiment)
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
    def compressor(self) -> ConvCompressor:
        """φ's one compressor."""
        return cast(ConvCompressor, next(iter(self.model.encoder.compressors)))

    @property
    def rate(self) -> Rate:
        """The rate of its tokens."""
        return cast(Conv, self.model.experiment.compressors[0]).rate

    def windows(self) -> Iterator[Batch]:
        """Yield the batches, one after the other."""
        return (self.batches[number] for number in range(self.count))


def _from_scratch(experiment: Experiment) -> TinyWan:
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
    if len(specs) != 1 or not isinstance(specs[0], Conv):
        raise UserError("only a memory of one conv compressor begins in closed form")
    spec, heads = specs[0], len(backbone.memory_blocks) * backbone.config.num_attention_heads
    plain = Conv()
    odd = [x for x in PLAIN if getattr(spec, x) != getattr(plain, x)]
    if odd:
        raise UserError(
            "a conv begins in closed form with lr, hr, and the usual "
            f"{', '.join(PLAIN[2:])}; not so here: {', '.join(odd)}"
        )
    places = spec.rate.time * spec.rate.height * spec.rate.width
    if heads < places or spec.rate.time != 2:
        raise UserError(
            f"{heads} heads in all are too few for the {places} patches of a {spec.rate} token, or "
            "its time rate is not 2"
        )
    crop, patch = model.experiment.train.crop, backbone.geometry.patch
    token = (spec.rate.height * patch.height, spec.rate.width * patch.width)
    if any(cells % step for cells, step in zip(crop, token, strict=True)):
        raise UserError(
            f"train.crop {list(crop)} holds no whole tokens of {spec.rate}, which are {token[0]} "
            f"by {token[1]} latents"
        )


# 1. The encoder


@torch.no_grad()
def begin_encoder(fitting: Fitting) -> None:
    """Make the convs keep principal components, and tokens hold them beside LR numbers."""
    compressor = fitting.compressor
    assert compressor.hr is not None
    frames = [_whole_blocks(batch.history, fitting.rate) for batch in fitting.windows()]
    importance = fitting.stage.weights.sqrt()  # what a unit of each channel is worth
    for conv in compressor.hr.trunk.convs:
        importance = keep_components(conv, frames, importance)
        frames = [conv(x, None) for x in frames]
    for layer in cast(Sequence[FrameAttention], compressor.hr.attention.layers):
        layer.out.weight.zero_()
        layer.out.bias.zero_()
    _write_beside_lr(fitting, torch.cat([_by_cell(x[:, : len(importance)]) for x in frames]))


def _whole_blocks(history: History, rate: Rate) -> Tensor:
    shortest = int(history.length.min())
    return history.latents[:, :, : 1 + (shortest - 1) // rate.time * rate.time].float()


def _by_cell(x: Tensor) -> Tensor:
    return rearrange(x, "b c t h w -> (b t h w) c")


def keep_components(conv: CausalConv, frames: Sequence[Tensor], importance: Tensor) -> Tensor:
    """Make a conv's first outputs the components of the blocks that it reads; the next importance.

    Args:
        conv: each output reads the block of its stride, as does the encoder's own grid.
        frames: its inputs `[B, C, T, H, W]`, from the start of videos.
        importance: what a unit of each of the first inputs is worth; the others are not read.
    """
    time, height, width = conv.shape.stride
    read = len(importance)
    drawn = []
    for x in frames:
        x = x[:, :read] * importance[None, :, None, None, None]
        x = torch.cat([x[:, :, :1].expand(-1, -1, time - 1, -1, -1), x], dim=2)
        x = x[:, :, : x.shape[2] // time * time]
        cells = rearrange(
            x, "b c (t a) (h r) (w s) -> (b t h w) (c a r s)", a=time, r=height, s=width
        )
        drawn.append(cells[torch.randperm(len(cells))[:DRAWN]])
    cells = torch.cat(drawn)
    variances, components = torch.linalg.eigh(torch.cov(cells.T.double()))
    kept = min(cells.shape[1], conv.shape.outputs)
    spread = _at_least(variances.flip(0)[:kept].clamp_min(0.0).sqrt().float())
    scale = SPREAD * _share(spread) / spread  # weak ones are raised: they stand on the same offset
    weight = components.flip(1)[:, :kept].T.float() * scale[:, None]
    conv.weight[:kept] = 0.0
    block = rearrange(weight, "k (c a r s) -> k c a r s", c=read, a=time, r=height, s=width)
    block = block * importance[None, :, None, None, None]
    # in time a conv reads its block last; in space, padded by one, from its second cell on
    conv.weight[:kept, :read, -time:, 1 : 1 + height, 1 : 1 + width] = block
    conv.bias[:kept] = OFFSET - weight @ cells.mean(0)
    return 1 / (scale * SLOPE)


def _at_least(spread: Tensor) -> Tensor:
    return spread.clamp_min(LEAST * float(spread[0]))


def _share(spread: Tensor) -> Tensor:
    """Return how far components are written out, the strongest, the first, by 1."""
    return (spread / spread[0]).sqrt()


def _write_beside_lr(fitting: Fitting, features: Tensor) -> None:
    """Make the encoder's last projection write features where LR tokens have nothing.

    Args:
        fitting: its tokens.
        features: of cells, `[N, kept]`, strongest first.
    """
    hr = fitting.compressor.hr
    assert hr is not None
    embedding = fitting.backbone.patch_embedding
    patches, bias = embedding.weight.flatten(1), embedding.bias[:, None]
    taken = torch.cat([patches, bias, torch.ones_like(bias)], dim=1)
    width = len(taken)
    basis, _ = torch.linalg.qr(torch.cat([taken, torch.randn(width, width)], dim=1)[:, :width])
    free = basis[:, taken.shape[1] :]
    kept = min(features.shape[1], free.shape[1])
    spread = _at_least(features[:, :kept].std(0))
    weight = free[:, :kept] * (AMPLITUDE * _share(spread) / spread)
    hr.out.weight.zero_()
    hr.out.weight.flatten(1)[:, :kept] = weight
    hr.out.bias.copy_(-(weight @ features[:, :kept].mean(0)))


# 2. The linear decoder of a token


@torch.no_grad()
def fit_decoder(fitting: Fitting) -> tuple[Tensor, Tensor]:
    """Return the map of a normalised token to its patches, and the covariance of such tokens.

    Returns:
        `[time, row, column, patch, D]` and `[D, D]`.
    """
    rate = fitting.rate
    squares: Tensor | float = 0.0
    products: Tensor | float = 0.0
    for batch in fitting.windows():
        tokens, patches = _tokens_and_patches(fitting, batch.history)
        tokens = F.pad(tokens, (0, 1), value=1.0).double()
        squares, products = squares + tokens.T @ tokens, products + tokens.T @ patches.double()
    assert isinstance(squares, Tensor) and isinstance(products, Tensor)
    found = _solve(squares, products)[:-1]
    decoder = rearrange(found, "d (a r s p) -> a r s p d", a=rate.time, r=rate.height, s=rate.width)
    moments = squares / squares[-1, -1]  # the last number of a token is 1, so that this is a count
    mean = moments[:-1, -1]
    return decoder, (moments[:-1, :-1] - torch.outer(mean, mean)).float()


def _tokens_and_patches(fitting: Fitting, history: History) -> tuple[Tensor, Tensor]:
    """Return the normalised tokens `[N, D]` of whole blocks, and the patches they stand for."""
    rate, latents = fitting.rate, history.latents.float()
    patch = fitting.backbone.geometry.patch
    frames = 1 + (latents.shape[2] - 1) // rate.time
    first = latents[:, :, :1].expand(-1, -1, rate.time - 1, -1, -1)
    blocks = torch.cat([first, latents[:, :, : 1 + (frames - 1) * rate.time]], dim=2)
    patches = rearrange(
        blocks,
        "b c (t a) (h r i) (w s j) -> b t (h w) (a r s c i j)",
        a=rate.time, r=rate.height, s=rate.width, i=patch.height, j=patch.width,
    )  # fmt: skip
    tokens = fitting.model.encoder(history).parts[0].tokens
    tokens = rearrange(tokens, "b (t s) d -> b t s d", s=patches.shape[2])[:, :frames]
    counts = 1 + (history.length - 1) // rate.time
    real = torch.arange(frames)[None] < counts[:, None]
    return F.layer_norm(tokens, tokens.shape[-1:])[real].flatten(0, 1), patches[real].flatten(0, 1)


def _solve(squares: Tensor, products: Tensor) -> Tensor:
    ridge = RIDGE * squares.diagonal().mean() * torch.eye(len(squares), dtype=squares.dtype)
    return cast(Tensor, torch.linalg.solve(squares + ridge, products).float())


# 3. The heads


@frozen(kw_only=True)
class Place:
    """A patch of a token's cell.

    Attributes:
        indices: its time, row and column in the cell.
        corner: where a token at it sees the cell's own token, in frames and patches.
    """

    indices: tuple[int, int, int]
    corner: tuple[float, float, float]


def places(rate: Rate) -> list[Place]:
    """Return the patches of a token's cell, in time, row, column order."""
    rows = [(rate.height - 1) / 2 - index for index in range(rate.height)]
    columns = [(rate.width - 1) / 2 - index for index in range(rate.width)]
    # the first token, of one frame, stands at its own place: who looks back a quarter finds both
    times = (0.5, -0.25)
    axes = (enumerate(times), enumerate(rows), enumerate(columns))
    return [
        Place(indices=(a, r, s), corner=(time, row, column))
        for (a, time), (r, row), (s, column) in itertools.product(*axes)
    ]


@frozen(kw_only=True)
class Look:
    """What a head is given to do.

    Attributes:
        place: of a token's cell that it looks to; its time is not looked at where `newest`.
        newest: it looks to the newest token there, however long ago, and not to one half a cell
            away.
        part: it reads the components `part`, `part + of`, `part + 2 of`, ... of the place's patch.
        of: see `part`.
    """

    place: Place
    newest: bool
    part: int
    of: int


def looks(rate: Rate, heads: int) -> list[Look]:
    """Deal out what heads look at: places first, alike often; what is left to the newest token.

    Two heads of each row and column look to the newest token, and more where they are left over;
    where all heads are needed for places, none does.

    Args:
        rate: of the tokens.
        heads: of all blocks, as many as a token has patches or more.
    """
    near = places(rate)
    latest = near[len(near) // 2 :]  # of the last latent in a block
    each = max(1, (heads - 2 * len(latest)) // len(near))
    left = heads - each * len(near)
    found = [Look(place=p, newest=False, part=i, of=each) for i in range(each) for p in near]
    back = left // len(latest)
    found += [Look(place=p, newest=True, part=i, of=back) for i in range(back) for p in latest]
    return found


@torch.no_grad()
def begin_heads(fitting: Fitting, decoder: Tensor, covariance: Tensor) -> int:
    """Turn heads to what they look at (`looks`), to read what its patch needs.

    Outputs are zero until `fit_outputs`. Returns how many numbers a head reads.

    Args:
        fitting: its heads.
        decoder: of a normalised token, as `fit_decoder` returns it.
        covariance: of such tokens.
    """
    backbone = fitting.backbone
    head_width: int = backbone.config.attention_head_dim
    heads: int = backbone.config.num_attention_heads
    dealt = looks(fitting.rate, len(backbone.memory_blocks) * heads)
    patch = decoder.shape[-2]
    read = min(head_width, max(-(-_needed(decoder, x, dealt).shape[0] // x.of) for x in dealt))
    weights = fitting.stage.weights
    weights = weights.repeat_interleave(patch // len(weights))
    for number, look in enumerate(dealt):
        block, head = divmod(number, heads)
        attention = backbone.memory_blocks[block].attn1
        channels = slice(head * head_width, (head + 1) * head_width)
        if look.newest:
            _look_back(attention, channels, look.place.corner)
        else:
            _look(attention, channels, look.place.corner)
        needed = _needed(decoder, look, dealt)
        needed = needed * weights.sqrt().repeat(len(needed) // patch)[:, None]
        _, axes = torch.linalg.eigh(needed @ covariance @ needed.T)
        chosen = axes.flip(1)[:, look.part :: look.of][:, :read]
        rows = slice(channels.start, channels.start + chosen.shape[1])
        value = chosen.T @ needed
        attention.to_v.weight[rows] = value - value.mean(1, keepdim=True)
    for block in backbone.memory_blocks:
        block.attn1.to_v.bias.zero_()
        block.attn1.to_out[0].weight.zero_()
        block.attn1.to_out[0].bias.zero_()
    return read


def _needed(decoder: Tensor, look: Look, dealt: Sequence[Look]) -> Tensor:
    """Return the map `[numbers, D]` of what a head is to tell from a token.

    Where others look back, heads of places tell all latents of the cell at their row and column: in
    the past both read the same token, and what is there from looking back must cancel.
    """
    a, row, column = look.place.indices
    if look.newest or not any(other.newest for other in dealt):
        return decoder[a, row, column]
    return decoder[:, row, column].flatten(0, 1)


def _look(attention: nn.Module, channels: slice, corner: tuple[float, float, float]) -> None:
    """Turn a head's keys to a corner; keys of noise, which have a vector of ones, stay."""
    key = attention.get_submodule("to_k")
    assert isinstance(key, nn.Linear)
    turned = direction(corner, channels.stop - channels.start)
    key.weight[channels] += (key.bias[channels] - turned)[:, None] / key.in_features
    key.bias[channels] = turned


def _look_back(attention: nn.Module, channels: slice, corner: tuple[float, float, float]) -> None:
    """Turn a head to the newest token at a row and column; where there is none it reads noise."""
    query, key = attention.get_submodule("to_q"), attention.get_submodule("to_k")
    assert isinstance(query, nn.Linear) and isinstance(key, nn.Linear)
    width = channels.stop - channels.start
    usual = direction((0.0, 0.0, 0.0), width).norm()
    here = direction((0.0, 0.0, 0.0), width, BACK)
    gain = here.norm() / usual  # the norm over all heads is to stay: the gain is the norm's
    turned = direction((0.0, *corner[1:]), width, BACK) / gain
    idle = torch.zeros(width)
    idle[0] = usual * (1 - NOWHERE**2) ** 0.5  # a frequency that no query has
    noise = NOWHERE * here / gain + idle
    query.bias[channels] = here / gain
    key.weight[channels] = (noise - turned)[:, None] / key.in_features
    key.bias[channels] = turned
    for norm in (attention.get_submodule("norm_q"), attention.get_submodule("norm_k")):
        assert isinstance(norm, nn.RMSNorm)
        norm.weight[channels] *= gain


@torch.no_grad()
def fit_outputs(fitting: Fitting, read: int) -> None:
    """Make the heads' outputs take the best guess of the clean patch away from the noise."""
    backbone = fitting.backbone
    squares: Tensor | float = 0.0
    products: Tensor | float = 0.0
    for number, ask in itertools.product(range(fitting.count), (_ask, _ask_on)):
        with _what_heads_read(backbone, read) as found:
            targets = ask(fitting, number)
        features = torch.cat([_of_targets(x, len(targets)) for x in found], dim=1).double()
        squares = squares + features.T @ features
        products = products + features.T @ targets.double()
    assert isinstance(squares, Tensor) and isinstance(products, Tensor)
    blocks, heads = len(backbone.memory_blocks), backbone.config.num_attention_heads
    solved = rearrange(_solve(squares, products), "(l h n) p -> l h n p", l=blocks, h=heads)
    embedding = backbone.patch_embedding.weight.flatten(1)
    for block, parts in zip(backbone.memory_blocks, solved, strict=True):
        out = block.attn1.to_out[0]
        for head, part in enumerate(parts):
            begin = head * backbone.config.attention_head_dim
            out.weight[:, begin : begin + read] = -(embedding @ part.T)


@contextmanager
def _what_heads_read(backbone: TinyWanBackbone, read: int) -> Iterator[list[list[Tensor]]]:
    """Collect, block by block, the first numbers of what each head reads."""
    heads = backbone.config.num_attention_heads
    found: list[list[Tensor]] = [[] for _ in backbone.memory_blocks]

    def note(into: list[Tensor], x: Tensor) -> None:
        into.append(rearrange(x, "b n (h d) -> (b n) h d", h=heads)[..., :read].flatten(1))

    hooks = [
        block.attn1.to_out[0].register_forward_pre_hook(
            lambda _, inputs, into=into: note(into, inputs[0])
        )
        for block, into in zip(backbone.memory_blocks, found, strict=True)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _of_targets(reads: list[Tensor], count: int) -> Tensor:
    """Return what targets read; memory is the other stream of a block, if it runs there."""
    return next(x for x in reads if len(x) == count)


def _ask(fitting: Fitting, number: int) -> Tensor:
    """Ask G for the targets of a batch from pure noise; return their patches `[N, patch]`."""
    stage, batch = fitting.stage, fitting.batches[number]
    draws = Draws.of(stage.spec.seed, number, batch.places, "loss")
    query = stage.masker.query(batch.history, stage.drop_text(batch.text, draws), draws)
    stage.loss(query, stage.encoder(batch.history), stage.draw_noise(query, draws))
    return _patches(fitting, query.targets)


def _ask_on(fitting: Fitting, number: int) -> Tensor:
    """Ask G for what follows a batch's pasts, from pure noise; return its patches `[N, patch]`."""
    stage, batch = fitting.stage, fitting.batches[number]
    draws = Draws.of(stage.spec.seed, number, batch.places, "on")
    shortest = int(batch.history.length.min())
    period = fitting.rate.time
    past = 1 + (shortest - min(AHEAD, shortest // 2) - 1) // period * period
    ahead = evolve(batch, past=past).continuation()
    target = ahead.target[:, :, : min(AHEAD, shortest - past)]
    stage.velocity_loss(
        target, ahead.frames[:, : target.shape[2]], stage.drop_text(batch.text, draws),
        stage.encoder(ahead.history), stage.draw_time(target, draws),
    )  # fmt: skip
    return _patches(fitting, target)


def _patches(fitting: Fitting, targets: Tensor) -> Tensor:
    patch = fitting.backbone.geometry.patch
    return rearrange(
        targets.float(),
        "b c k (h i) (w j) -> (b k h w) (c i j)", i=patch.height, j=patch.width,
    )  # fmt: skip


@torch.no_grad()
def mean_loss(fitting: Fitting) -> tuple[float, float]:
    """Return the loss from pure noise and clean history, and that of a guess of zero."""
    stage, losses, zeros = fitting.stage, [], []
    for number, batch in enumerate(fitting.windows()):
        draws = Draws.of(stage.spec.seed, number, batch.places, "loss")
        query = stage.masker.query(batch.history, stage.drop_text(batch.text, draws), draws)
        drawn = stage.draw_noise(query, draws)
        losses.append(stage.loss(query, stage.encoder(batch.history), drawn).mean())
        weighted = query.targets.square() * stage.weights[None, :, None, None, None]
        zeros.append(weighted.mean())
    return float(torch.stack(losses).mean()), float(torch.stack(zeros).mean())


def begin(experiment: Experiment, store: Store, count: int) -> Fitting:
    """Return the model of an experiment as it begins in closed form.

    Raises:
        UserError: as `Fitting.of`.
    """
    torch.manual_seed(experiment.train.seed)
    fitting = Fitting.of(experiment, store, count)
    begin_encoder(fitting)
    read = begin_heads(fitting, *fit_decoder(fitting))
    fit_outputs(fitting, read)
    return fitting


def write(fitting: Fitting, experiment: Experiment, store: Store, out: Path) -> None:
    """Write the model as a run of no steps, which `pretrain --start` goes on from."""
    experiment = evolve(
        experiment,
        backbone=_from_scratch(experiment),
        train=evolve(experiment.train, trains="all"),
    )
    out.mkdir(parents=True, exist_ok=True)
    with whole_folder(out / "checkpoint-0") as folder:
        save_model(folder, evolve(fitting.model, experiment=experiment))
    begin_run(experiment, store, out, "fp32")


def parser() -> argparse.ArgumentParser:
    """Return what the command takes."""
    result = command_line("closed_form", __doc__)
    result.add_argument("experiment", help="a shipped name, or file.py:NAME")
    result.add_argument("--data", type=Path, required=True, help="a latent store to begin on")
    result.add_argument("--out", type=Path, required=True, help="the run that is written")
    result.add_argument(
        "--batches", type=int, default=60, help="of windows, as the experiment has them"
    )
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = parser().parse_args(words)
    try:
        _, experiment = load_experiment(options.experiment)
        check_out_folder(options.out)
        if options.out.is_dir() and not only_parts(options.out):
            raise UserError(f"--out {options.out} is a folder with files in it: name a new one")
        store = Store.open(options.data)
        fitting = begin(experiment, store, options.batches)
        loss, zero = mean_loss(fitting)
        if not math.isfinite(loss):
            raise UserError(f"{options.data}: {options.batches} batches of it are too few")
        write(fitting, experiment, store, options.out)
        facts = {"batches": options.batches, "loss": round(loss, 4), "of_zero": round(zero, 4)}
        write_json(options.out / FACTS, facts)
    except LongtakeError as error:
        return exit_code(error, "closed_form")
    print(f"{options.out}: loss {loss:.3f} from pure noise; of a guess of zero {zero:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
