"""Several encoders as one compressor: by name what a list in the experiment does, too."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import torch

from ...core.interfaces.compressor import (
    Compressor,
    Fit,
    Length,
    MemoryEncoder,
    Needs,
    State,
    features_side_by_side,
)
from ...core.interfaces.spec import CompressorSpec
from ...core.registry import build, registry
from ...core.values.grid import Geometry, Size3
from ...core.values.history import History
from ...core.values.memory import Memory
from .specs import DualEncoder


class DualEncoderCompressor(Compressor[DualEncoder]):
    """The parts of every encoder, named by its place (`0.conv-4x4x2`, `1.conv-2x2x8`).

    The state is that of all encoders, keys named by their place too; it is bounded where theirs
    are.

    Source: method.md §5.
    """

    def __init__(self, spec: DualEncoder, fit: Fit) -> None:
        super().__init__(spec, fit)
        members: list[Compressor[CompressorSpec]] = [build(inner, fit) for inner in spec.encoders]
        self.settles = any(member.settles for member in members)
        self.encoder = MemoryEncoder(members)

    @classmethod
    def needs(cls, spec: DualEncoder) -> Needs:
        """Return what all encoders need together."""
        needs = [_class_of(inner).needs(inner) for inner in spec.encoders]
        return functools.reduce(operator.or_, needs, Needs(hr=False))

    @classmethod
    def context_length(cls, spec: DualEncoder, geometry: Geometry, size: Size3) -> Length:
        """Return the sum over the encoders; exact where all are."""
        lengths = [_class_of(i).context_length(i, geometry, size) for i in spec.encoders]
        exact = all(length.exact for length in lengths)
        return Length(tokens=sum(length.tokens for length in lengths), exact=exact)

    @classmethod
    def features(cls, spec: DualEncoder) -> dict[str, int]:
        """Return the widths of the encoders' features, named as their parts are."""
        return features_side_by_side([_class_of(i).features(i) for i in spec.encoders])

    def forward(self, history: History) -> Memory:
        """Return the parts of every encoder on the same history."""
        memory: Memory = self.encoder(history)
        return memory

    def step(self, state: State | None, chunk: History) -> tuple[State, Memory]:
        """Take the next chunk; return each encoder's state, and all that has settled."""
        before = split_state(state, len(self.encoder.members)) if state else None
        states, settled = self.encoder.step(before, chunk)
        return join_states(states), settled

    def pending(self, state: State) -> Memory:
        """Return all that may still change."""
        return self.encoder.pending(split_state(state, len(self.encoder.members)))

    def cut(self, state: State) -> State:
        """Return the state of each encoder after a hard cut."""
        return join_states(self.encoder.cut(split_state(state, len(self.encoder.members))))

    def check_device(self, device: torch.device) -> None:
        """Refuse a device on which one of the encoders does not run: UserError."""
        self.encoder.check_device(device)


def _class_of(spec: CompressorSpec) -> type[Compressor[Any]]:
    cls: type[Compressor[Any]] = registry().load(spec)
    return cls


def join_states(states: Sequence[State]) -> State:
    """Return several states as one; each key begins with the place of its state."""
    return {f"{place}.{key}": x for place, state in enumerate(states) for key, x in state.items()}


def split_state(state: State, count: int) -> list[State]:
    """Return the states that `join_states` has put together."""
    return [
        {key.removeprefix(f"{i}."): x for key, x in state.items() if key.startswith(f"{i}.")}
        for i in range(count)
    ]
