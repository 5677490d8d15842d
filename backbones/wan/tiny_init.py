"""How a tiny Wan begins when nothing pretrained it: as a copier of nearby memory, nearly.

diffusers' own initialisation suits models that will be loaded. From scratch it spends most of a
short training on things that can be had for free: passing the noise through (the head starts as
the inverse of the first projection), open gates with silent blocks, and heads that look at the
corners around a place, which is where the tokens of a compressed memory sit.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .rotary import axis_widths

if TYPE_CHECKING:
    from .model import Wan

CORNERS = tuple(itertools.product((-0.5, 0.5), repeat=3))  # (time, row, column), in cells
SHARPNESS = 3.0  # gain of queries and of keys: a neighbour one cell off weighs a few per cent
CONSTANT = 2.0  # size of the first projection's bias; content has about 0.6
QUIET = 0.1  # share of diffusers' weights that outputs of blocks begin with
FREQUENCIES = 2  # of each axis, the highest; one alone would repeat every 2π cells


@torch.no_grad()
def begin_local(model: Wan) -> None:
    """Initialise a random tiny Wan in place, so that at first its velocity is about the noise."""
    _raise_tokens(model)
    _invert_head(model)
    _quiet_time(model)
    blocks: Any = model.blocks  # what diffusers gives is not typed
    for block in blocks:
        block.scale_shift_table.zero_()
        block.scale_shift_table[:, (2, 5)] = 1.0  # the gates of attention and feed-forward
        for linear in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            linear.weight.mul_(QUIET)  # not zero: memory's gradient goes through it
            linear.bias.zero_()
        _look_at_corners(block.attn1, model.config.attention_head_dim)


def _raise_tokens(model: Wan) -> None:
    # LayerNorm forgets a token's amplitude; a large constant beside the content keeps it
    bias = model.patch_embedding.bias
    bias.copy_(CONSTANT * torch.where(bias > 0, 1.0, -1.0))


def _invert_head(model: Wan) -> None:
    weight, bias = model.patch_embedding.weight, model.patch_embedding.bias  # [D, C, 1, p, p], [D]
    width, channels, patch = weight.shape[0], weight.shape[1], weight.shape[2:]
    # from [C·p·p, D] to the head's order, cells before channels
    inverse = torch.linalg.pinv(weight.flatten(1)).view(channels, -1, width).transpose(0, 1)
    inverse = inverse.reshape(patch.numel() * channels, width)
    # the head reads tokens of zero mean and unit variance
    scale = (weight.flatten(1).square().sum(1).mean() + bias.var()).sqrt()
    model.proj_out.weight.copy_(inverse * scale)
    model.proj_out.bias.copy_(-(inverse @ (bias - bias.mean())))
    model.scale_shift_table.zero_()


def _quiet_time(model: Wan) -> None:
    for linear in (
        model.condition_embedder.time_embedder.linear_2,
        model.condition_embedder.time_proj,
    ):
        linear.weight.mul_(0.05)
        linear.bias.zero_()


def _look_at_corners(attention: nn.Module, head_width: int) -> None:
    query, key = attention.get_submodule("to_q"), attention.get_submodule("to_k")
    assert isinstance(query, nn.Linear) and isinstance(key, nn.Linear)
    for linear in (query, key):
        linear.weight.mul_(0.2)
        linear.bias.zero_()
    for head in range(query.out_features // head_width):
        corner = CORNERS[head % len(CORNERS)]
        at = slice(head * head_width, (head + 1) * head_width)
        query.bias[at] = _direction((0.0, 0.0, 0.0), head_width)
        key.bias[at] = _direction(corner, head_width)
    for norm in (attention.get_submodule("norm_q"), attention.get_submodule("norm_k")):
        assert isinstance(norm, nn.RMSNorm)
        norm.weight.fill_(SHARPNESS)


def _direction(offset: tuple[float, ...], head_width: int) -> Tensor:
    """Give a vector that, rotated to a place, points as another does `offset` cells further on."""
    vector = torch.zeros(head_width)
    base = 0
    for cells, width in zip(offset, axis_widths(head_width), strict=True):
        for pair in range(min(FREQUENCIES, width // 2)):
            angle = torch.tensor(-cells * 10000.0 ** (-2 * pair / width))
            vector[base + 2 * pair] = 1.5 * angle.cos()
            vector[base + 2 * pair + 1] = 1.5 * angle.sin()
        base += width
    return vector
