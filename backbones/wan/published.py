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
from typing import Any, cast

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from ..specs import DiTSpec
from ..weights.find import Release
from . import specs
from .block import THETA, rotary_axes
from .model import WanBackbone, embed_time

# (time, row, column), in cells. Tokens of memory stand half a cell from what they hold, but for the
# first one, of a single frame, which stands at its own place: who looks back a quarter finds both.
CORNERS = tuple(itertools.product((-0.25, 0.5), (-0.5, 0.5), (-0.5, 0.5)))
SHARPNESS = 12.0  # gain of queries and of keys: a neighbour one cell off weighs next to nothing
CONTENT = 0.0  # share of diffusers' weights that queries and keys read of content at first
CONSTANT = 4.0  # size of the first projection's bias; content has about 0.6
QUIET_EMBEDDING = 0.3  # share of diffusers' weights that the embedding of time begins with
QUIET_TIME = 0.1  # and the modulation by it
RIDGE = 1e-4  # keeps the fitted weights small
QUIET = 0.1  # share of diffusers' weights that outputs of blocks begin with
NEARLY = 0.4  # frames: memory less than so far from a corner is preferred to oneself
FREQUENCIES = 3  # of each axis, the highest; two alone nearly repeat every 19 cells
SWITCH = (0, 1)  # numbers of the embedding of time that switch attention by whether there is noise
FAR = 10.0  # of the two from zero; SiLU is a thousandth off there
SOME_NOISE = 0.02  # time from which tokens count as noisy
# Mean squares of ε − X₀, and of a guess of X₀ minus X₀. Of the noise that sampling begins with it
# leaves √(error / velocity): somewhat less than what memory misses, as grain is worse than blur.
VELOCITY, GUESS_ERROR = 2.2, 0.01
TIMES = 501  # of the flow, that what depends on time is fitted at


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
        clean_memory: whether memory enters at time 0. Then attention passes over noisy tokens and
            leaves memory as it is; at the targets' own time both would meet memory and targets.
    """
    _raise_tokens(model)
    _invert_head(model)
    _quiet_time(model)
    for block in model.memory_blocks:
        block.scale_shift_table.zero_()
        block.scale_shift_table[:, (2, 5)] = 1.0  # the gates of attention and feed-forward
        for linear in (block.attn1.to_out[0], block.attn2.to_out[0], block.ffn.net[2]):
            linear.weight.mul_(QUIET)  # not zero: memory's gradient goes through it
            linear.bias.zero_()
        _look_at_corners(block.attn1, model.config.attention_head_dim)
    if clean_memory:
        _guess_velocity(model)
        _pass_over_noise(model)
        _read_lr_latents(model)


def _raise_tokens(model: WanBackbone) -> None:
    # LayerNorm forgets a token's amplitude; a large constant beside the content keeps it
    bias = model.patch_embedding.bias
    bias.copy_(CONSTANT * torch.where(bias > 0, 1.0, -1.0))


def _read_cells(model: WanBackbone) -> Tensor:
    """Return the weight `[C·cells, D]` by which a token, normalised, gives its patch back.

    It reads nothing of the numbers `SWITCH`.
    """
    weight, bias = model.patch_embedding.weight.flatten(1), model.patch_embedding.bias
    centred = (bias - bias.mean())[:, None]  # as what reads tokens sees them; it must not be read
    shared = torch.ones_like(centred)  # nor what all numbers share, which no norm lets by
    seen = torch.cat([weight, centred, shared], dim=1)
    seen[list(SWITCH)] = 0.0
    inverse = torch.linalg.pinv(seen)[:-2]
    scale = (weight.square().sum(1).mean() + bias.var()).sqrt()  # what they are divided by there
    return cast(Tensor, inverse * scale)


def _invert_head(model: WanBackbone) -> None:
    # the head writes cells before channels, the first projection reads channels before cells
    channels = model.patch_embedding.weight.shape[1]
    read = rearrange(_read_cells(model), "(c cells) d -> (cells c) d", c=channels)
    model.proj_out.weight.copy_(read)
    model.proj_out.bias.zero_()
    model.scale_shift_table.zero_()


def _quiet_time(model: WanBackbone) -> None:
    embedder = model.condition_embedder
    last, projection = embedder.time_embedder.linear_2, embedder.time_proj
    for linear, share in ((last, QUIET_EMBEDDING), (projection, QUIET_TIME)):
        linear.weight.mul_(share)
        linear.bias.zero_()
    noise = torch.ones(1, device=model.device)
    embedding, _ = embed_time(embedder, 1000 * noise, noise)
    model.scale_shift_table.sub_(embedding[0])  # the head adds both; exact for pure noise


def _pass_over_noise(model: WanBackbone) -> None:
    # Attention reads norm(x)·(1 + scale) + shift and adds gate times what it found. Where there is
    # noise, scale is −1: nothing is read of it, heads look by place alone and find the same
    # whatever it is; shift is 1: its tokens share a vector that no clean token has; gate is 1. At
    # time 0, of memory, all are 0: its tokens are read, and stay as they are. A hundredth of noise
    # that is read is seen in what many heads find, so the switch must be exact: two numbers of the
    # embedding are far above zero where there is noise and far below at time 0, one apart, and the
    # difference of their SiLU is 1 or 0.
    embedder = model.condition_embedder
    seen, times = _before_last(model)
    wanted = torch.where(times > 0, FAR, -FAR)
    weight, bias = _fit(seen, wanted, known=(times == 0) | (times >= SOME_NOISE))
    last, projection = embedder.time_embedder.linear_2, embedder.time_proj
    width = last.out_features
    projection.weight[:, list(SWITCH)] = 0.0
    projection.weight[: 3 * width] = 0.0
    projection.bias[: 3 * width] = 0.0
    for number, half in zip(SWITCH, (0.5, -0.5), strict=True):
        last.weight[number] = weight
        last.bias[number] = bias.round() + half  # which bf16 holds, too
        for part, sign in enumerate((1.0, -1.0, 1.0)):  # shift, scale and gate of attention
            projection.weight[part * width : (part + 1) * width, number] = sign * 2 * half
    for block in model.memory_blocks:
        block.scale_shift_table[:, 2] = 0.0
        _look_at_oneself(block.attn1, model.config.attention_head_dim)


def _before_last(model: WanBackbone) -> tuple[Tensor, Tensor]:
    """Return what the last linear of the embedding of times reads, and the times."""
    embedder = model.condition_embedder
    times = torch.linspace(0.0, 1.0, TIMES, device=model.device)
    steps = embedder.timesteps_proj(1000 * times)
    return embedder.time_embedder.act(embedder.time_embedder.linear_1(steps)), times


def _guess_velocity(model: WanBackbone) -> None:
    # The head writes norm(x)·(1 + scale), and what blocks leave of X_t is X_t − X₀ = t·(ε − X₀), if
    # memory's guess of X₀ is right: 1 + scale is the best factor for a guess of some error. Both
    # scale and shift of the head are the embedding of time, whose other directions it must not see.
    embedder = model.condition_embedder
    last = embedder.time_embedder.linear_2
    seen, times = _before_last(model)
    factor = VELOCITY * times / (VELOCITY * times.square() + GUESS_ERROR)
    weight, bias = _fit(seen, factor - 1, known=times >= 0)
    read, constant = _read_cells(model), model.patch_embedding.bias
    scale = (model.patch_embedding.weight.flatten(1).square().sum(1).mean() + constant.var()).sqrt()
    visible = read * ((constant - constant.mean()) / scale + 1)
    hidden = torch.eye(len(constant)) - torch.linalg.pinv(visible) @ visible
    last.weight.copy_(hidden @ last.weight + weight)
    last.bias.fill_(float(bias))
    model.scale_shift_table.zero_()


def _fit(seen: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias that make a target of what is seen at the times that are known."""
    rows = torch.cat([seen, torch.ones_like(seen[:, :1])], dim=1).double()[known]
    weights = torch.ones_like(rows[:, :1])
    weights[0] = weights[-1] = len(rows)  # time 0 is memory's, time 1 where every video begins
    gram = rows.T @ (weights * rows)
    ridge = RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    wanted = rows.T @ (weights[:, 0] * target.double()[known])
    found = torch.linalg.solve(gram + ridge, wanted).to(seen.dtype)
    return found[:-1], found[-1]


def _look_at_oneself(attention: nn.Module, head_width: int) -> None:
    # Where no memory is at its corner a head should read nothing, which is what noise holds: the
    # vector that tokens of noise share turns their keys to themselves, nearly. Values skip it.
    key, value = attention.get_submodule("to_k"), attention.get_submodule("to_v")
    assert isinstance(key, nn.Linear) and isinstance(value, nn.Linear)
    own = direction((NEARLY, 0.0, 0.0), head_width)
    turn = own.repeat(key.out_features // head_width) - key.bias
    key.weight.add_(turn[:, None] / key.in_features)
    value.weight.sub_(value.weight.mean(1, keepdim=True))


def _read_lr_latents(model: WanBackbone) -> None:
    # A token at a corner of a memory token's cell stands for one of the LR latents in that token:
    # values of the head that looks there begin with its channels, and output with next to nothing.
    # So a head is of use from the first steps; of no use, training soon turns it away from memory,
    # and then no gradient brings it back.
    channels = min(model.patch_embedding.weight.shape[1], model.config.attention_head_dim)
    read = rearrange(_read_cells(model), "(c r w) d -> r w c d", r=2, w=2)
    for block in model.memory_blocks:
        for head in range(model.config.num_attention_heads):
            _, row, column = CORNERS[head % len(CORNERS)]
            latent = int(row < 0), int(column < 0)  # looking down and right it is the first one
            begin = head * model.config.attention_head_dim
            block.attn1.to_v.weight[begin : begin + channels] = read[latent][:channels]
        block.attn1.to_v.bias.zero_()
        block.attn1.to_out[0].weight.mul_(QUIET)  # once more


def _look_at_corners(attention: nn.Module, head_width: int) -> None:
    query, key = attention.get_submodule("to_q"), attention.get_submodule("to_k")
    assert isinstance(query, nn.Linear) and isinstance(key, nn.Linear)
    for linear in (query, key):
        linear.weight.mul_(CONTENT)
        linear.bias.zero_()
    for head in range(query.out_features // head_width):
        corner = CORNERS[head % len(CORNERS)]
        channels = slice(head * head_width, (head + 1) * head_width)
        query.bias[channels] = direction((0.0, 0.0, 0.0), head_width)
        key.bias[channels] = direction(corner, head_width)
    for norm in (attention.get_submodule("norm_q"), attention.get_submodule("norm_k")):
        assert isinstance(norm, nn.RMSNorm)
        norm.weight.fill_(SHARPNESS)


Weights = Mapping[int, float]  # of frequencies of an axis; the highest is 0
HIGHEST: Weights = dict.fromkeys(range(FREQUENCIES), 1.0)


def direction(
    offset: tuple[float, ...],
    head_width: int,
    weights: tuple[Weights, Weights, Weights] = (HIGHEST, HIGHEST, HIGHEST),
) -> Tensor:
    """Return a vector `[head width]` that is rotated as far as another one `offset` cells away.

    With the rotary embedding of any position it equals the vector of offset 0 with the embedding of
    the position `offset` (time, row, column; in cells) before that one.

    Args:
        offset: cells, along each axis.
        head_width: of the vector.
        weights: of the frequencies that it has, by axis.
    """
    vector = torch.zeros(head_width)
    base = 0
    for cells, used, width in zip(offset, weights, rotary_axes(head_width).widths, strict=True):
        for pair, weight in used.items():
            if pair < width // 2:
                angle = torch.tensor(-cells * THETA ** (-2 * pair / width))
                vector[base + 2 * pair] = 1.5 * weight * angle.cos()
                vector[base + 2 * pair + 1] = 1.5 * weight * angle.sin()
        base += width
    return vector
