"""Parts: tensors that several processes hold together (DTensor), made whole and dealt out again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is held in parts by several processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """Give a tensor with all its parts; all processes must ask in the same order."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole_tree(value: T) -> T:
    """Give dicts and lists of tensors with all their parts, on the CPU where they were sharded."""
    if isinstance(value, Tensor):
        return whole(value).cpu() if is_sharded(value) else value  # type: ignore[return-value]
    if isinstance(value, Mapping):
        return {name: whole_tree(inner) for name, inner in value.items()}  # type: ignore[return-value]
    return [whole_tree(x) for x in value] if isinstance(value, list) else value  # type: ignore[return-value]


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """Give this process's part of a whole tensor, where `like` is sharded; else the tensor."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    place = value.to(like.device)
    return distribute_tensor(place, like.device_mesh, like.placements, src_data_rank=None)


def _is_moment(name: str, held: Any) -> bool:
    return name != "step" and isinstance(held, Tensor) and bool(held.shape)


def spread(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give the whole state of an optimizer as its parameters are held here."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {
            name: part_of(x, weights[index]) if _is_moment(name, x) else x
            for name, x in held.items()
        }
        for index, held in state["state"].items()
    }
    return {**state, "state": moments}
