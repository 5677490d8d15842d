"""The published Wans of one transformer: 2.1, 2.2's 5B, and either expert of 2.2's 14B."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Self

import attrs
import torch
from torch import Tensor, nn

from ..specs import DiTSpec
from ..weights.find import Release
from . import specs
from .block import axis_widths
from .model import Wan


def facts(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return numbers of diffusers' config from the shapes of a Wan's tensors (heads are not there).

    Args:
        tensors: by diffusers' names; what is missing is left out.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    found: dict[str, Any] = {"num_layers": len(blocks)}
    if first := shapes.get("patch_embedding.weight"):
        found |= {"in_channels": first[1], "patch_size": list(first[2:])}
        if last := shapes.get("proj_out.weight"):
            found["out_channels"] = last[0] // (first[2] * first[3] * first[4])
    if ffn := shapes.get("blocks.0.ffn.net.0.proj.weight"):
        found["ffn_dim"] = ffn[0]
    if text := shapes.get("condition_embedder.text_embedder.linear_1.weight"):
        found["text_dim"] = text[1]
    image = shapes.get("condition_embedder.image_embedder.norm1.weight")
    return found | {"image_dim": image[0] if image else None}


RELEASE = Release(original="WanModel", experts=False, facts=facts)
HIGH_NOISE, LOW_NOISE = (  # of 2.2's 14B
    attrs.evolve(RELEASE, parts=parts, experts=True)
    for parts in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model"))
)


class PublishedWan(Wan):
    """Wan by the numbers of its spec, with the weights that it names."""

    spec_class = specs.PublishedWan
    release = RELEASE


# ⟦backbones/wan/tiny_init.py⟧ How a tiny Wan begins when nothing pretrained it: as a copier of nearby memory, nearly. diffusers' own initialisation suits models that will be loaded. From scratch it spends most of a short training on things that can be had for free: passing the noise through (the head starts as the inverse of the first projection), open gates with silent blocks, and heads that look at the corners around a place, which is where the tokens of a compressed memory sit.


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
    """Return a vector that, rotated to a place, points as another does `offset` cells further on."""
    vector = torch.zeros(head_width)
    base = 0
    for cells, width in zip(offset, axis_widths(head_width), strict=True):
        for pair in range(min(FREQUENCIES, width // 2)):
            angle = torch.tensor(-cells * 10000.0 ** (-2 * pair / width))
            vector[base + 2 * pair] = 1.5 * angle.cos()
            vector[base + 2 * pair + 1] = 1.5 * angle.sin()
        base += width
    return vector


# ⟦backbones/wan/tiny.py⟧ `tiny-wan`: the real Wan transformer with small numbers.


class TinyWan(Wan):
    """Wan by the numbers of its spec; random until `weights` names a checkpoint."""

    spec_class = specs.TinyWan
    release = RELEASE

    @classmethod
    def initialiser(cls, spec: DiTSpec) -> Callable[[Self], None] | None:
        """Return what turns random weights into a near copier of memory, where the spec asks."""
        return begin_local if isinstance(spec, specs.TinyWan) and spec.begin == "local" else None
