"""The Wans of one transformer: 2.1, 2.2's 5B, either expert of 2.2's 14B, and the tiny one.

A tiny Wan that nothing pretrained starts nearly as a copier of nearby memory
(`initialise_as_copier`). diffusers' own initialisation suits models that will be loaded. From
scratch it spends most of a short training on things that can be had for free: passing the noise
through (here the head starts as the inverse of the first projection), open gates with silent
blocks, heads that look at the corners around a position, which is where the tokens of a
compressed memory sit, and attention that reads less of what is noisier: nothing of pure noise,
all of a memory at time 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from ..specs import DiTSpec
from ..weights.find import Release
from . import specs
from .block import THETA, rotary_axes
from .model import WanBackbone, embed_time

CORNERS = tuple(itertools.product((-0.5, 0.5), repeat=3))  # (time, row, column), in cells
SHARPNESS = 3.0  # gain of queries and of keys: a neighbour one cell off weighs a few per cent
CONSTANT = 2.0  # size of the first projection's bias; content has about 0.6
QUIET_EMBEDDING = 0.3  # share of diffusers' weights that the embedding of time begins with
QUIET_TIME = 0.1  # and the modulation by it
RIDGE = 1e-4  # keeps the fitted weights small
QUIET = 0.1  # share of diffusers' weights that outputs of blocks begin with
FREQUENCIES = 3  # of each axis, the highest; two alone nearly repeat every 19 cells
TIMES = 501  # of the flow, that the scale of attention is fitted at


def config_from_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return numbers of diffusers' config from the shapes of a Wan's tensors (heads are not there).

    Args:
        tensors: by diffusers' names; what is missing is left out.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    blocks = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    config: dict[str, Any] = {"num_layers": len(blocks)}
    if first := shapes.get("patch_embedding.weight"):
        config |= {"in_channels": first[1], "patch_size": list(first[2:])}
        if last := shapes.get("proj_out.weight"):
            config["out_channels"] = last[0] // (first[2] * first[3] * first[4])
    if ffn := shapes.get("blocks.0.ffn.net.0.proj.weight"):
        config["ffn_dim"] = ffn[0]
    if text := shapes.get("condition_embedder.text_embedder.linear_1.weight"):
        config["text_dim"] = text[1]
    image = shapes.get("condition_embedder.image_embedder.norm1.weight")
    return config | {"image_dim": image[0] if image else None}


ORIGINAL_FIELDS = {  # of the original release's config.json, and diffusers' names of them
    "num_heads": "num_attention_heads", "ffn_dim": "ffn_dim", "num_layers": "num_layers",
    "in_dim": "in_channels", "out_dim": "out_channels", "text_dim": "text_dim",
    "freq_dim": "freq_dim", "eps": "eps", "patch_size": "patch_size",
    "cross_attn_norm": "cross_attn_norm",
}  # fmt: skip


def config_from_original(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers of diffusers' config from the config.json of the original release.

    Args:
        written: what is missing there is left out.
    """
    config = {ours: written[name] for name, ours in ORIGINAL_FIELDS.items() if name in written}
    width, heads = written.get("dim"), written.get("num_heads")
    if isinstance(width, int) and isinstance(heads, int) and heads > 0:
        config["attention_head_dim"] = width // heads
    if "qk_norm" in written:
        config["qk_norm"] = "rms_norm_across_heads" if written["qk_norm"] else None
    return config


RELEASE = Release(
    original="WanModel", experts=False, numbers=config_from_original, facts=config_from_tensors
)
HIGH_NOISE, LOW_NOISE = (  # of 2.2's 14B
    attrs.evolve(RELEASE, parts=parts, experts=True)
    for parts in (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model"))
)


class PublishedWanBackbone(WanBackbone):
    """Wan by the numbers of its spec, with the weights that it names."""

    spec_class = specs.PublishedWan
    release = RELEASE


class TinyWanBackbone(WanBackbone):
    """The real Wan transformer with small numbers; random until `weights` names a checkpoint."""

    spec_class = specs.TinyWan
    release = RELEASE

    def initialise(self, spec: DiTSpec) -> None:
        """Make a near copier of memory of random weights, where the spec says so (`begin`)."""
        if isinstance(spec, specs.TinyWan) and spec.begin == "local":
            initialise_as_copier(self, clean_memory=spec.memory_time == 0)


@torch.no_grad()
def initialise_as_copier(model: WanBackbone, *, clean_memory: bool) -> None:
    """Initialise a random tiny Wan in place, so that at first its velocity is about the noise.

    Args:
        model: of random weights.
        clean_memory: whether memory enters at time 0, where attention may pass over noisy tokens;
            at the targets' own time it would be passed over with them.
    """
    _raise_tokens(model)
    _invert_head(model)
    _quiet_time(model)
    if clean_memory:
        _pass_over_noise(model)
    for block in model.memory_blocks:
        block.scale_shift_table.zero_()
        block.scale_shift_table[:, (2, 5)] = 1.0  # the gates of attention and feed-forward
        for linear in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            linear.weight.mul_(QUIET)  # not zero: memory's gradient goes through it
            linear.bias.zero_()
        _look_at_corners(block.attn1, model.config.attention_head_dim)


def _raise_tokens(model: WanBackbone) -> None:
    # LayerNorm forgets a token's amplitude; a large constant beside the content keeps it
    bias = model.patch_embedding.bias
    bias.copy_(CONSTANT * torch.where(bias > 0, 1.0, -1.0))


def _invert_head(model: WanBackbone) -> None:
    weight, bias = model.patch_embedding.weight, model.patch_embedding.bias  # [D, C, 1, p, p], [D]
    inverse = torch.linalg.pinv(weight.flatten(1))
    # the head writes cells before channels, the first projection reads channels before cells
    inverse = rearrange(inverse, "(c cells) d -> (cells c) d", c=weight.shape[1])
    # the head reads tokens of zero mean and unit variance
    scale = (weight.flatten(1).square().sum(1).mean() + bias.var()).sqrt()
    model.proj_out.weight.copy_(inverse * scale)
    model.proj_out.bias.copy_(-(inverse @ (bias - bias.mean())))
    model.scale_shift_table.zero_()


def _quiet_time(model: WanBackbone) -> None:
    embedder = model.condition_embedder
    last, projection = embedder.time_embedder.linear_2, embedder.time_proj
    for linear, share in ((last, QUIET_EMBEDDING), (projection, QUIET_TIME)):
        linear.weight.mul_(share)
        linear.bias.zero_()
    embedding, _ = _at_all_times(model)
    model.scale_shift_table.sub_(embedding.mean(0))  # the head adds both


def _at_all_times(model: WanBackbone) -> tuple[Tensor, Tensor]:
    times = torch.linspace(0.0, 1.0, TIMES, device=model.device)
    embedding, _ = embed_time(model.condition_embedder, 1000 * times, times)
    return embedding, times


def _pass_over_noise(model: WanBackbone) -> None:
    # attention reads norm(x)·(1 + scale): with scale = −t nothing of pure noise, so that heads look
    # by place alone and find the same values whatever the noise is. Least squares over all t.
    embedding, times = _at_all_times(model)
    seen = model.condition_embedder.act_fn(embedding).double()
    seen = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1)
    gram = seen.T @ seen + RIDGE * torch.eye(seen.shape[1], dtype=seen.dtype, device=seen.device)
    found = torch.linalg.solve(gram, seen.T @ -times.double())
    width = embedding.shape[-1]
    scale = slice(width, 2 * width)  # of shift, scale and gate of attention, then the others'
    projection = model.condition_embedder.time_proj
    projection.weight[scale] = found[:-1].to(embedding.dtype)
    projection.bias[scale] = found[-1].to(embedding.dtype)


def _look_at_corners(attention: nn.Module, head_width: int) -> None:
    query, key = attention.get_submodule("to_q"), attention.get_submodule("to_k")
    assert isinstance(query, nn.Linear) and isinstance(key, nn.Linear)
    for linear in (query, key):
        linear.weight.mul_(0.2)
        linear.bias.zero_()
    for head in range(query.out_features // head_width):
        corner = CORNERS[head % len(CORNERS)]
        channels = slice(head * head_width, (head + 1) * head_width)
        query.bias[channels] = direction((0.0, 0.0, 0.0), head_width)
        key.bias[channels] = direction(corner, head_width)
    for norm in (attention.get_submodule("norm_q"), attention.get_submodule("norm_k")):
        assert isinstance(norm, nn.RMSNorm)
        norm.weight.fill_(SHARPNESS)


def direction(offset: tuple[float, ...], head_width: int) -> Tensor:
    """Return a vector `[head width]` that is rotated as far as another one `offset` cells away.

    With the rotary embedding of any position it equals the vector of offset 0 with the embedding of
    the position `offset` (time, row, column; in cells) before that one.
    """
    vector = torch.zeros(head_width)
    base = 0
    for cells, width in zip(offset, rotary_axes(head_width).widths, strict=True):
        for pair in range(min(FREQUENCIES, width // 2)):
            angle = torch.tensor(-cells * THETA ** (-2 * pair / width))
            vector[base + 2 * pair] = 1.5 * angle.cos()
            vector[base + 2 * pair + 1] = 1.5 * angle.sin()
        base += width
    return vector
