"""The feature cache of Wan's VAE as a state: a flat dict of tensors, by tile and convolution."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...core.compressor import State
from .tiles import Grid

Caches = list[Any]  # a tensor, diffusers' mark, or None where nothing came by yet
MARK = "Rep"  # of a first latent, which is not doubled in time


def run_grid(
    net: nn.Module, run: Callable[[Tensor, Caches], Tensor], grid: Grid, state: State | None
) -> tuple[Grid, State]:
    """Give what `run` makes of each tile with its caches, and the caches after it as a state.

    Args:
        net: whose causal convolutions the caches belong to, one each.
        run: one step of it, which puts new caches into the list.
        grid: the tiles.
        state: before this step, left as it is.
    """
    count = sum(isinstance(part, nn.Conv3d) for part in net.modules())
    after: State = {}
    rows: Grid = []
    for i, row in enumerate(grid):
        rows.append([])
        for j, tile in enumerate(row):
            caches = _unpacked(state, f"{i}.{j}.", count)
            rows[-1].append(run(tile, caches))
            after |= _packed(caches, f"{i}.{j}.")
    return rows, after


def _unpacked(state: State | None, name: str, count: int) -> Caches:
    caches: Caches = [None] * count
    for key, x in (state or {}).items():
        if key.startswith(name):
            caches[int(key.removeprefix(name))] = x if x.numel() else MARK
    return caches


def _packed(caches: Caches, name: str) -> State:
    """Give caches as tensors; an empty one stands for the mark."""
    return {
        f"{name}{index}": torch.empty(0) if isinstance(x, str) else x
        for index, x in enumerate(caches)
        if x is not None
    }


def decode_reach(blocks: int) -> int:
    """Give how many latents before its own the decoder can see at most, for b blocks a level.

    A convolution over 3 frames looks back 2 of them. In latents these are 2 + 8 + 4(b + 1) + 2
    before time is doubled first, half of 4(b + 1) + 2 before it is again, and a quarter of
    8(b + 1) + 2 after that.
    """
    level = 4 * (blocks + 1)
    return -(-(4 * (12 + level) + 2 * (level + 2) + 2 * level + 2) // 4)
