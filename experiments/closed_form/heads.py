"""The DiT in closed form: heads that look to the places of a token's cell, and least squares.

Each place in a token's cell gets heads that look there (`backbones.wan.published`), and those left
over look to the newest token at each place of a row and column, which is what a video goes on from:
their values are that place's part of the linear decoder of a token, their outputs least squares
again, on what attention really reads of frames in the past and of frames behind it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from attrs import evolve, frozen
from einops import rearrange
from torch import Tensor, nn

from ...backbones.wan.block import rotary_axes
from ...backbones.wan.published import TinyWanBackbone, direction
from ...core.values.draws import Draws
from ...core.values.grid import Rate
from .fitting import TIMES, Fitting, solve

# Weights of frequencies by which a head looks back, of time with periods of 6, 20, 63 and 200
# latents in a head of 48. Of two heads one finds the newest token up to a dozen latents later, the
# other one only two or three, so that what soon no longer holds is told while it does. Of space so
# much that no time makes up for the wrong place.
SPACE = {0: 1.7, 1: 1.7, 2: 1.7}
LONG, SOON = {1: 0.55, 2: 1.0, 3: 1.0}, {0: 0.75, 1: 1.0, 2: 0.8, 3: 0.5}
NOWHERE = 0.93  # of a perfect match: how near a token of noise is to its own query there
AHEAD = 8  # latents behind a past that outputs are fitted to, at most
AHEAD_WEIGHT = 0.1  # of those in least squares: their misses are 17 times as large, unavoidably


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
        tokens, patches = fitting.cells(batch.history)
        tokens = F.pad(F.layer_norm(tokens, tokens.shape[-1:]), (0, 1), value=1.0).double()
        squares, products = squares + tokens.T @ tokens, products + tokens.T @ patches.double()
    assert isinstance(squares, Tensor) and isinstance(products, Tensor)
    found = solve(squares, products)[:-1]
    decoder = rearrange(found, "d (a r s p) -> a r s p d", a=rate.time, r=rate.height, s=rate.width)
    moments = squares / squares[-1, -1]  # the last number of a token is 1, so that this is a count
    mean = moments[:-1, -1]
    return decoder, (moments[:-1, :-1] - torch.outer(mean, mean)).float()


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
    times = TIMES[rate.time]
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
        soon: with `newest`: only while that is two or three latents ago.
        part: it reads the components `part`, `part + of`, `part + 2 of`, ... of the place's patch.
        of: see `part`.
    """

    place: Place
    newest: bool
    soon: bool = False
    part: int
    of: int


def looks(rate: Rate, heads: int) -> list[Look]:
    """Deal out what heads look at: places first, alike often; what is left to the newest token.

    Two heads of each row and column look to the newest token, and more where they are left over;
    where less than two heads were left to each place, none does but what is left over.

    Args:
        rate: of the tokens.
        heads: of all blocks, as many as a token has patches or more.
    """
    near = places(rate)
    latest = near[-rate.height * rate.width :]  # of the last latent in a block
    each = (heads - 2 * len(latest)) // len(near)
    if each < 2:
        each = heads // len(near)
    left = heads - each * len(near)
    found = [Look(place=p, newest=False, part=i, of=each) for i in range(each) for p in near]
    back = left // len(latest)
    of = (back + 1) // 2
    found += [
        Look(place=p, newest=True, soon=bool(i % 2), part=i // 2, of=of)
        for i in range(back)
        for p in latest
    ]
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
            _look_back(attention, channels, look)
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


def _look_back(attention: nn.Module, channels: slice, look: Look) -> None:
    """Turn a head to the newest token at a row and column; where there is none it reads noise."""
    query, key = attention.get_submodule("to_q"), attention.get_submodule("to_k")
    assert isinstance(query, nn.Linear) and isinstance(key, nn.Linear)
    width = channels.stop - channels.start
    weights = (SOON if look.soon else LONG, SPACE, SPACE)
    usual = direction((0.0, 0.0, 0.0), width).norm()
    here = direction((0.0, 0.0, 0.0), width, weights)
    gain = here.norm() / usual  # the norm over all heads is to stay: the gain is the norm's
    turned = direction((0.0, *look.place.corner[1:]), width, weights) / gain
    idle = torch.zeros(width)
    lowest = rotary_axes(width).widths[0] - 2  # a frequency of time that no query has
    idle[lowest] = usual * (1 - NOWHERE**2) ** 0.5
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
    asked = ((_ask, 1.0), (_ask_on, AHEAD_WEIGHT))
    for number, (ask, weight) in itertools.product(range(fitting.count), asked):
        with _what_heads_read(backbone, read) as found:
            targets = ask(fitting, number)
        if not len(targets):
            continue
        features = torch.cat([_of_targets(x, len(targets)) for x in found], dim=1).double()
        squares = squares + weight * (features.T @ features)
        products = products + weight * (features.T @ targets.double())
    assert isinstance(squares, Tensor) and isinstance(products, Tensor)
    blocks, heads = len(backbone.memory_blocks), backbone.config.num_attention_heads
    solved = rearrange(solve(squares, products), "(l h n) p -> l h n p", l=blocks, h=heads)
    embedding = backbone.patch_embedding.weight.flatten(1)
    for block, parts in zip(backbone.memory_blocks, solved, strict=True):
        out = block.attn1.to_out[0]
        for head, part in enumerate(parts):
            begin = head * backbone.config.attention_head_dim
            out.weight[:, begin : begin + read] = -(embedding @ part.T)


@contextmanager
def _what_heads_read(backbone: TinyWanBackbone, read: int) -> Iterator[list[list[Tensor]]]:
    """Collect, block by block, the first numbers of what each head of the targets' stream reads.

    `[B, N, heads · read]` for every call with targets, for whom a block attends first; memory that
    is one stream with them stands before them. Calls for memory alone are passed over.
    """
    heads = backbone.config.num_attention_heads
    found: list[list[Tensor]] = [[] for _ in backbone.memory_blocks]
    asked: set[nn.Module] = set()  # blocks whose next read is the targets'

    def begin(block: nn.Module, inputs: tuple[object, ...]) -> None:
        asked.discard(block) if inputs[0] is None else asked.add(block)

    def note(block: nn.Module, into: list[Tensor], x: Tensor) -> None:
        if block in asked:
            asked.remove(block)
            into.append(rearrange(x, "b n (h d) -> b n h d", h=heads)[..., :read].flatten(2))

    hooks = [
        hook
        for block, into in zip(backbone.memory_blocks, found, strict=True)
        for hook in (
            block.register_forward_pre_hook(begin),
            block.attn1.to_out[0].register_forward_pre_hook(
                lambda _, inputs, block=block, into=into: note(block, into, inputs[0])
            ),
        )
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _of_targets(reads: list[Tensor], count: int) -> Tensor:
    """Return what `count` targets of a batch read, `[count, heads · read]`, of their one call."""
    (x,) = reads
    return x[:, x.shape[1] - count // len(x) :].flatten(0, 1)


def _ask(fitting: Fitting, number: int) -> Tensor:
    """Ask G for the targets of a batch from pure noise; return their patches `[N, patch]`."""
    stage, batch = fitting.stage, fitting.batches[number]
    draws = Draws.of(stage.spec.seed, number, batch.places, "loss")
    query = stage.masker.query(batch.history, stage.drop_text(batch.text, draws), draws)
    stage.loss(query, stage.encoder(batch.history), stage.draw_noise(query, draws))
    return fitting.patches(query.targets).flatten(0, 3)


def _ask_on(fitting: Fitting, number: int) -> Tensor:
    """Ask G for what follows a batch's pasts, from pure noise; return its patches `[N, patch]`.

    Samples with a hard cut there are left out, all or none: what comes after a cut cannot be told,
    and a guess that allows for it is greyer than what goes on.
    """
    stage, batch = fitting.stage, fitting.batches[number]
    shortest = int(batch.history.length.min())
    period = fitting.rate.time
    past = 1 + (shortest - min(AHEAD, shortest // 2) - 1) // period * period
    end = min(past + AHEAD, shortest)
    uncut = fitting.uncut(number, past - 1, end)
    if not uncut:
        return torch.empty(0)
    batch = batch.select(uncut)
    draws = Draws.of(stage.spec.seed, number, batch.places, "on")
    ahead = evolve(batch, past=past).continuation()
    target = ahead.target[:, :, : end - past]
    stage.velocity_loss(
        target, ahead.frames[:, : target.shape[2]], stage.drop_text(batch.text, draws),
        stage.encoder(ahead.history), stage.draw_time(target, draws),
    )  # fmt: skip
    return fitting.patches(target).flatten(0, 3)
