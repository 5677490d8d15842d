"""How contract checks speak: one clear line, as an AssertionError."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def require(condition: bool, line: str) -> None:
    """Make sure that `condition` holds.

    Raises:
        AssertionError: it does not; the message is `line`.
    """
    if not condition:
        raise AssertionError(line)


def require_shape(x: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Make sure that a tensor has a shape and holds finite values only."""
    require(tuple(x.shape) == shape, f"{what} is {tuple(x.shape)}, must be {shape}")
    require(bool(torch.isfinite(x).all()), f"{what} holds values that are not finite")


def require_close(x: Tensor, y: Tensor, tolerance: float, what: str) -> None:
    """Make sure that two tensors agree to `tolerance` of the greatest value (0: to the bit)."""
    require(x.shape == y.shape, f"{what}: shapes {tuple(x.shape)} and {tuple(y.shape)} differ")
    if not y.numel():
        return
    gap = float((x.double() - y.double()).abs().max())
    scale = max(1.0, float(y.double().abs().max()))
    require(gap <= tolerance * scale, f"{what}: differs by {gap:.3g}")


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give copies, to see later whether the originals were changed."""
    return {name: x.clone() for name, x in tensors.items()}


def require_unchanged(now: Mapping[str, Tensor], before: Mapping[str, Tensor], what: str) -> None:
    """Make sure that tensors still are what `copied` saw."""
    same = now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)
    require(same, f"{what} was changed in place")
