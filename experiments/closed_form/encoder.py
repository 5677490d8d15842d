"""The encoder in closed form: tokens that hold the principal components of what they stand for.

Each conv keeps the components of what it reads, in the pixels' metric, and its SiLU is nearly
linear; the last one keeps those that the LR latents beside it do not tell. The Large Patchifier's
projection keeps components of its blocks. Other compressors stay as they begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor

from ...core.values.grid import Rate
from ...core.values.history import History
from ...plugins.compressors.conv import ConvCompressor
from ...plugins.compressors.conv_layers import CausalConv, FrameAttention
from ...plugins.compressors.patchifier import EvenPatches, PatchifierCompressor
from .fitting import RIDGE, Fitting

# Of a conv's strongest component before SiLU. At this offset SiLU's second derivative is zero, so
# that it is linear but for a third power: the first conv lost 2.6 % of what it read at 1, here 0.1.
OFFSET, SPREAD = 2.3994, 0.5
SLOPE = torch.sigmoid(torch.tensor(OFFSET)).item() * (
    1 + OFFSET * (1 - torch.sigmoid(torch.tensor(OFFSET)).item())
)  # of SiLU there
LEAST = 1e-4  # spread of a component, of the strongest's: few windows have components of nothing
AMPLITUDE = 2.0  # of the strongest component in a token; a weaker one has the root of its share
DRAWN = 4000  # cells of a window batch that components are taken from


@torch.no_grad()
def begin_encoder(fitting: Fitting) -> None:
    """Make tokens hold principal components where the compressor has something to set."""
    compressor = next(iter(fitting.model.encoder.compressors))
    if isinstance(compressor, ConvCompressor) and compressor.hr is not None:
        _begin_conv(fitting, compressor)
    if isinstance(compressor, PatchifierCompressor) and isinstance(compressor.inner, EvenPatches):
        _begin_projection(fitting, compressor.inner)


def _begin_conv(fitting: Fitting, compressor: ConvCompressor) -> None:
    hr, alone = compressor.hr, compressor.lr is None
    assert hr is not None
    frames = [_whole_blocks(batch.history, fitting.rate) for batch in fitting.windows()]
    lr = None if alone else [_lr_by_cell(fitting, batch.history) for batch in fitting.windows()]
    importance = fitting.stage.weights.sqrt()  # what a unit of each channel is worth
    convs = hr.trunk.convs
    for conv in convs:
        told = lr if conv is convs[-1] else None
        importance = keep_components(conv, frames, importance, told)
        frames = [conv(x, None) for x in frames]
    for layer in cast(Sequence[FrameAttention], hr.attention.layers):
        layer.out.weight.zero_()
        layer.out.bias.zero_()
    features = torch.cat([_by_cell(x[:, : len(importance)]) for x in frames])
    mean, weight = features.mean(0), _written(fitting, features.std(0), alone=alone)
    hr.out.weight.zero_()
    hr.out.weight.flatten(1)[:, : weight.shape[1]] = weight
    hr.out.bias.copy_(-(weight @ mean[: weight.shape[1]]))
    if alone:
        hr.out.bias.add_(fitting.backbone.patch_embedding.bias)


def _begin_projection(fitting: Fitting, patches: EvenPatches) -> None:
    """Make the projection of blocks keep their components."""
    projection, rate = patches.project, fitting.rate
    patch = fitting.backbone.geometry.patch
    block = (rate.time, rate.height * patch.height, rate.width * patch.width)
    frames = (_whole_blocks(batch.history, rate) for batch in fitting.windows())
    cells = torch.cat([_drawn(_blocks(x, block)) for x in frames])
    importance = fitting.stage.weights.sqrt()
    importance = importance.repeat_interleave(cells.shape[1] // len(importance))
    cells = cells * importance
    found = _components(torch.cov(cells.T.double()))
    spread = _at_least((cells @ found).std(0))
    weight = _written(fitting, spread, alone=True)
    weight = weight @ found[:, : weight.shape[1]].T
    projection.weight.copy_((weight * importance).unflatten(1, projection.weight.shape[1:]))
    projection.bias.copy_(fitting.backbone.patch_embedding.bias - weight @ cells.mean(0))


def _whole_blocks(history: History, rate: Rate) -> Tensor:
    shortest = int(history.length.min())
    return history.latents[:, :, : 1 + (shortest - 1) // rate.time * rate.time].float()


def _lr_by_cell(fitting: Fitting, history: History) -> Tensor:
    """Return the LR latents that stand in the tokens of `_whole_blocks`, `[cells, numbers]`."""
    frames = _whole_blocks(history, fitting.rate).shape[2]
    tokens = 1 + (frames - 1) // fitting.rate.time
    return fitting.patches(history.lr[fitting.rate][:, :, :tokens]).flatten(0, 3)


def _by_cell(x: Tensor) -> Tensor:
    return rearrange(x, "b c t h w -> (b t h w) c")


def _blocks(x: Tensor, block: tuple[int, int, int]) -> Tensor:
    """Return the blocks `[N, C·t·h·w]` of `[B, C, T, H, W]`; the first frame is one, repeated."""
    time, height, width = block
    x = torch.cat([x[:, :, :1].expand(-1, -1, time - 1, -1, -1), x], dim=2)
    return rearrange(
        x[:, :, : x.shape[2] // time * time],
        "b c (t a) (h r) (w s) -> (b t h w) (c a r s)", a=time, r=height, s=width,
    )  # fmt: skip


def _drawn(cells: Tensor) -> Tensor:
    return cells[torch.randperm(len(cells))[:DRAWN]]


def keep_components(
    conv: CausalConv,
    frames: Sequence[Tensor],
    importance: Tensor,
    told: Sequence[Tensor] | None = None,
) -> Tensor:
    """Make a conv's first outputs the components of the blocks that it reads; the next importance.

    Args:
        conv: each output reads the block of its stride, as does the encoder's own grid.
        frames: its inputs `[B, C, T, H, W]`, from the start of videos.
        importance: what a unit of each of the first inputs is worth; the others are not read.
        told: what stands beside its outputs already, `[blocks, numbers]` of each of the inputs:
            components are those of what these do not tell.
    """
    time, height, width = conv.shape.stride
    read = len(importance)
    drawn = []
    for number, x in enumerate(frames):
        cells = _blocks(x[:, :read] * importance[None, :, None, None, None], conv.shape.stride)
        drawn.append(_drawn(torch.cat([cells, told[number]], dim=1) if told else cells))
    cells, beside = torch.cat(drawn).tensor_split([read * time * height * width], dim=1)
    covariance = torch.cov(cells.T.double())
    found = _components(covariance - _explained(cells, beside))[:, : conv.shape.outputs]
    spread = _at_least((cells @ found).std(0))
    scale = SPREAD * _share(spread) / spread  # weak ones are raised: they stand on the same offset
    weight = found.T * scale[:, None]
    kept = len(weight)
    conv.weight[:kept] = 0.0
    block = rearrange(weight, "k (c a r s) -> k c a r s", c=read, a=time, r=height, s=width)
    block = block * importance[None, :, None, None, None]
    # in time a conv reads its block last; in space, padded by one, from its second cell on
    conv.weight[:kept, :read, -time:, 1 : 1 + height, 1 : 1 + width] = block
    conv.bias[:kept] = OFFSET - weight @ cells.mean(0)
    return 1 / (scale * SLOPE)


def _components(covariance: Tensor) -> Tensor:
    """Return the principal components of a covariance in float64, strongest first, in columns."""
    return cast(Tensor, torch.linalg.eigh(covariance)[1].flip(1).float())


def _explained(cells: Tensor, known: Tensor) -> Tensor:
    """Return the covariance of the best linear guess of cells from what is known of them."""
    x, y = (z.double() - z.double().mean(0) for z in (known, cells))
    moments = x.T @ x
    moments += (
        RIDGE
        * moments.diagonal().sum()
        / max(1, len(moments))
        * torch.eye(len(moments), dtype=moments.dtype)
    )
    products = x.T @ y
    return cast(Tensor, products.T @ torch.linalg.solve(moments, products) / (len(x) - 1))


def _at_least(spread: Tensor) -> Tensor:
    return spread.clamp_min(LEAST * float(spread.max()))


def _share(spread: Tensor) -> Tensor:
    """Return how far components are written out, the strongest by 1."""
    return (spread / spread.max()).sqrt()


def _written(fitting: Fitting, spread: Tensor, *, alone: bool) -> Tensor:
    """Return how components are written into a token `[D, kept]`, where it holds nothing yet.

    Args:
        fitting: its tokens. All hold the bias of the DiT's first projection.
        spread: of the components, strongest first.
        alone: no LR numbers are in the token.
    """
    embedding = fitting.backbone.patch_embedding
    bias = embedding.bias[:, None]
    taken = torch.cat([bias, torch.ones_like(bias)], dim=1)  # no norm lets the latter by
    if not alone:
        taken = torch.cat([embedding.weight.flatten(1), taken], dim=1)
    width = len(taken)
    basis, _ = torch.linalg.qr(torch.cat([taken, torch.randn(width, width)], dim=1)[:, :width])
    free = basis[:, taken.shape[1] :]
    kept = min(len(spread), free.shape[1])
    spread = _at_least(spread)[:kept]
    return cast(Tensor, free[:, :kept] * (AMPLITUDE * _share(spread) / spread))
