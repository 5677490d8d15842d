"""LoRA tensors by the keys of other programs (conventions A), out of pairs by diffusers' names.

diffusers  transformer.blocks.0.attn1.to_q.lora_A.weight, with its metadata
comfyui    diffusion_model.blocks.0.self_attn.q.lora_A.weight and .alpha
kohya      lora_unet_blocks_0_self_attn_q.lora_down.weight and .alpha
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .names import Family

DIFFUSERS, COMFYUI, KOHYA = "transformer.", "diffusion_model.", "lora_unet_"


class Pair(NamedTuple):
    """The two matrices of one linear: `down` (A) `[rank, in]`, `up` (B) `[out, rank]`."""

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Rows of A."""
        return int(self.down.shape[0])


class Sizes(NamedTuple):
    """Numbers of features of a linear."""

    enter: int
    leave: int


SizeOf = Callable[[str], Sizes]  # of one of diffusers' linears, by name
Pairs = Mapping[str, Pair]


def pairs_of(tensors: Mapping[str, Tensor]) -> dict[str, Pair]:
    """Give the pairs by linear of tensors such as `blocks.0.attn1.to_q.lora_A.weight`.

    Raises:
        KeyError: a linear has only one of the two.
    """
    linears = dict.fromkeys(name.partition(".lora_")[0] for name in tensors)
    return {
        linear: Pair(tensors[f"{linear}.lora_A.weight"], tensors[f"{linear}.lora_B.weight"])
        for linear in linears
    }


def kind_of(linear: str) -> str:
    """Give the name of a linear without the number of its block."""
    return re.sub(r"\.\d+\.", ".", linear, count=1)


def original(pairs: Pairs, family: Family, size_of: SizeOf) -> dict[str, Pair]:
    """Give the pairs by original names; linears that are one there become one.

    Raises:
        KeyError: a linear has no original name.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for name in pairs:
        place = family.place(name)
        if place is None:
            raise KeyError(name)
        groups[place.linear] = place.members
    return {
        linear: fuse([pairs.get(m) for m in members], [size_of(m).leave for m in members])
        for linear, members in groups.items()
    }


def fuse(parts: Sequence[Pair | None], widths: Sequence[int]) -> Pair:
    """Give one pair for linears whose outputs stand side by side, exactly, at the sum of ranks.

    A are stacked, B stand on a diagonal, so that each output reads its own A alone.

    Args:
        parts: the linears in the order of their outputs; None: not adapted.
        widths: outputs of each.
    """
    given = [part for part in parts if part is not None]
    if len(parts) == 1:
        return given[0]
    down = torch.cat([part.down for part in given])
    up = given[0].up.new_zeros(sum(widths), down.shape[0])
    row = column = 0
    for part, width in zip(parts, widths, strict=True):
        if part is not None:
            up[row : row + width, column : column + part.rank] = part.up
            column += part.rank
        row += width
    return Pair(down, up)


def filled(
    pairs: Pairs, family: Family, linears: Iterable[str], size_of: SizeOf
) -> dict[str, Pair]:
    """Give original pairs with zeros of rank 1 where diffusers' reader of kohya files wants one.

    Args:
        pairs: by original names.
        family: of the model.
        linears: all of diffusers' linears that the model has.
        size_of: of those.
    """
    like = next(iter(pairs.values())).down
    every = dict(pairs)
    for name in linears:
        place = family.place(name)
        if place and place.linear not in every and _end(place.linear) in family.filled:
            size = size_of(name)
            every[place.linear] = Pair(like.new_zeros(1, size.enter), like.new_zeros(size.leave, 1))
    return every


def _end(linear: str) -> str:
    return linear.split(".", 2)[2]


def comfyui(pairs: Pairs, scale: float, *, scales: bool) -> dict[str, Tensor]:
    """Give ComfyUI's tensors of original pairs.

    Args:
        pairs: by original names.
        scale: alpha / rank.
        scales: write `.alpha`; else the scale goes into B.
    """
    tensors = {}
    for linear, pair in pairs.items():
        tensors[f"{COMFYUI}{linear}.lora_A.weight"] = pair.down
        tensors[f"{COMFYUI}{linear}.lora_B.weight"] = pair.up if scales else pair.up * scale
        if scales:
            tensors[f"{COMFYUI}{linear}.alpha"] = torch.tensor(scale * pair.rank)
    return tensors


def kohya(pairs: Pairs, scale: float) -> dict[str, Tensor]:
    """Give the tensors of original pairs as sd-scripts and musubi-tuner write them."""
    tensors = {}
    for linear, pair in pairs.items():
        flat = KOHYA + linear.replace(".", "_")
        tensors[f"{flat}.lora_down.weight"] = pair.down
        tensors[f"{flat}.lora_up.weight"] = pair.up
        tensors[f"{flat}.alpha"] = torch.tensor(scale * pair.rank)
    return tensors
