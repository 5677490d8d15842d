"""Wan 2.2 T2V A14B: one of its experts, or both with a switch by time."""

from __future__ import annotations

from pathlib import Path
from typing import Self, cast

import attrs

from ...core.errors import UserError
from ...core.lora_file import LoraFile
from ...core.spec import BackboneSpec
from ..weights.sources import find_source
from . import published_specs as specs
from .expert_files import export
from .experts import Experts
from .published import HIGH_NOISE, LOW_NOISE, PublishedWan


class Wan22Moe(PublishedWan):
    """One expert of Wan 2.2 14B; for both, `load` gives `Experts`, which hold two of these."""

    @classmethod
    def load(cls, spec: BackboneSpec, *, seed: int = 0) -> Self:
        """Give the expert that the spec names, or both behind the same interface.

        Raises:
            UserError: weights are missing, damaged, of another class or shape, or of one model
                where both experts are asked for.
        """
        if not isinstance(spec, specs.Wan22Moe14B):
            raise UserError(f"wan22-14b needs its own spec, not {type(spec).__name__}")
        if spec.expert == "both":  # another class, with the same interface
            return cast(Self, cls.both(spec, seed))
        return cls._one(spec, spec.expert, seed)

    @classmethod
    def export_adapters(cls, spec: BackboneSpec, path: Path, layout: str) -> dict[str, LoraFile]:
        """Give the adapters of a file by another program's keys; those of both experts apart."""
        if isinstance(spec, specs.Wan22Moe14B) and spec.expert == "both":
            return export(cls, spec, path, layout)
        return super().export_adapters(spec, path, layout)

    @classmethod
    def both(cls, spec: specs.Wan22Moe14B, seed: int) -> Experts:
        """Give both experts; random ones differ."""
        high, low = _places(spec.weights)
        return Experts(
            cls._one(attrs.evolve(spec, weights=high), "high", seed),
            cls._one(attrs.evolve(spec, weights=low), "low", seed + 1),
            spec.boundary,
        )

    @classmethod
    def _one(cls, spec: specs.Wan22Moe14B, expert: str, seed: int) -> Self:
        loras = tuple(x.removeprefix(f"{expert}:") for x in spec.loras if _for(x, expert))
        release = LOW_NOISE if expert == "low" else HIGH_NOISE
        return cls.of_release(attrs.evolve(spec, loras=loras), seed, release)


def _for(lora: str, expert: str) -> bool:
    owner = lora.partition(":")[0]
    return owner == expert or owner not in ("high", "low")


def _places(weights: str | None) -> tuple[str | None, str | None]:
    """Give the places of the high-noise and of the low-noise expert; None: random weights.

    Raises:
        UserError: both are one place.
    """
    if weights is None:
        return None, None
    first, comma, second = weights.partition(",")
    high = find_source(first.strip(), HIGH_NOISE.parts)
    low = find_source((second if comma else first).strip(), LOW_NOISE.parts)
    if high.path == low.path:
        raise UserError(
            f"weights {weights} hold one model, and expert both needs two: name a pipeline with "
            "transformer and transformer_2, or `high,low` with a comma"
        )
    return str(high.path), str(low.path)
