"""Memories and the states of encoders as named tensors, and back; one place for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..interfaces.compressor import State
from ..values.grid import Size3
from ..values.memory import Memory, Part

OF_PART = ("tokens", "positions", "extents", "valid")
# What is computed with moves to the device; counts and masks of states live on the CPU.
ON_DEVICE = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8)


def memory_tensors(memory: Memory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a memory as named tensors, and what a header must hold to read them back."""
    tensors: dict[str, Tensor] = {}
    for place, part in enumerate(memory.parts):
        tensors |= {f"part.{place}.{name}": getattr(part, name) for name in OF_PART}
        tensors |= {f"part.{place}.feature.{name}": x for name, x in part.features.items()}
    size = memory.size
    sides = None if size is None else [size.time, size.height, size.width]
    return tensors, {"parts": [part.name for part in memory.parts], "size": sides}


def read_memory(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], device: torch.device
) -> Memory:
    """Return the memory of named tensors; tokens and features on `device`, places on the CPU."""
    parts = []
    for place, name in enumerate(header["parts"]):
        begin = f"part.{place}."
        features = f"{begin}feature."
        parts.append(
            Part(
                name=name,
                tokens=tensors[f"{begin}tokens"].to(device),
                positions=tensors[f"{begin}positions"],
                extents=tensors[f"{begin}extents"],
                valid=tensors[f"{begin}valid"],
                features={
                    key.removeprefix(features): x.to(device)
                    for key, x in tensors.items()
                    if key.startswith(features)
                },
            )
        )
    sides = header["size"]
    size = None if sides is None else Size3(time=sides[0], height=sides[1], width=sides[2])
    return Memory(parts=tuple(parts), size=size)


def state_tensors(states: Sequence[State]) -> dict[str, Tensor]:
    """Return the states of an encoder's compressors as named tensors."""
    return {f"state.{i}.{key}": x for i, state in enumerate(states) for key, x in state.items()}


def read_states(tensors: Mapping[str, Tensor], count: int, device: torch.device) -> list[State]:
    """Return the states of `count` compressors; what is computed with is moved to `device`."""
    states: list[State] = [{} for _ in range(count)]
    for name, x in tensors.items():
        if name.startswith("state."):
            _, place, key = name.split(".", 2)
            states[int(place)][key] = x
    return [on_device(state, device) for state in states]


def on_device(state: State, device: torch.device) -> State:
    """Return a state with all that is computed with on `device`; counts and masks stay."""
    return {key: x.to(device) if x.dtype in ON_DEVICE else x for key, x in state.items()}
