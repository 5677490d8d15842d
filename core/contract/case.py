"""What a contract of compressors runs on, and when two memories count as equal."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from attrs import frozen
from torch import Tensor

from ..compressor import Compressor, State
from ..fit import Fit
from ..grid import Size3
from ..history import History
from ..memory import Memory, Part
from .samples import sample_history

AnyCompressor: TypeAlias = Compressor[Any]


@frozen(kw_only=True)
class Case:
    """What is under test, and how to build it and its input."""

    compressor_cls: type[AnyCompressor]
    spec: Any
    fit: Fit
    seed: int
    dtype: torch.dtype

    def built(self) -> AnyCompressor:
        """A new compressor."""
        return self.compressor_cls(self.spec, self.fit).to(self.dtype)

    def history(self, size: Size3, batch: int = 2) -> History:
        """A random history with what the compressor needs."""
        needs = self.compressor_cls.needs(self.spec)
        return sample_history(
            size,
            needs,
            batch,
            geometry=self.fit.geometry,
            seed=self.seed,
            dtype=self.dtype,
            start=16,
        )

    def sizes(self) -> list[Size3]:
        """Sizes: landscape, portrait, dividing nothing, one latent, none."""
        shapes = [(11, 16, 18), (10, 9, 5), (8, 7, 7), (1, 6, 6), (2, 3, 17), (0, 6, 6)]
        return [Size3(time=t, height=h, width=w) for t, h, w in shapes]

    def near(self, a: Tensor, b: Tensor) -> bool:
        """Whether two tensors are equal up to rounding."""
        tolerance = 1e-12 if self.dtype == torch.float64 else 1e-4
        if a.shape != b.shape or a.numel() == 0:
            return a.shape == b.shape
        scale = max(1.0, float(b.double().abs().max()))
        return float((a.double() - b.double()).abs().max()) <= tolerance * scale

    def same(self, a: Memory, b: Memory) -> bool:
        """Whether two memories are equal up to rounding; parts without tokens do not count."""
        parts_a, parts_b = real_parts(a), real_parts(b)
        return list(parts_a) == list(parts_b) and all(
            self.near(x, y)
            for name in parts_a
            for x, y in zip(tensors(parts_a[name]), tensors(parts_b[name]), strict=True)
        )


def real_parts(memory: Memory) -> dict[str, Part]:
    """Give the parts that have tokens, by name."""
    return {part.name: part for part in memory.parts if part.tokens.shape[1]}


def tensors(part: Part) -> list[Tensor]:
    """Give all tensors of a part; features by name."""
    features = [part.features[name] for name in sorted(part.features)]
    return [part.tokens, part.positions, part.extents, part.valid.double(), *features]


def snapshot(memory: Memory) -> State:
    """Give copies of all tensors of a memory."""
    named = {f"{p.name}.{i}": x for p in memory.parts for i, x in enumerate(tensors(p))}
    return {name: x.clone() for name, x in named.items()}


def equal(a: State, b: State) -> bool:
    """Whether two dicts hold the same tensors, bit for bit."""
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)
