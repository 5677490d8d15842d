"""Retriever `probe`: how much of the past is in the tokens, whatever the generator makes of it."""

from __future__ import annotations

from ...core.grid import Geometry
from ...core.probe import Budget, Probing
from ..specs import Probe
from .probe_head import CrossHead


class ProbeRetriever(Probing[Probe]):
    """Gives Ω back by a small cross-attention head, fitted on the frozen memory.

    `longtake probe RUN --data STORE` fits it on the memories of clean windows, by the mean squared
    error of latents, so what it gives is a mean, not a sample. It asks less than the DiT could: a
    low figure says that this head finds little, a high one that the tokens hold much.
    """

    @classmethod
    def head(cls, spec: Probe, geometry: Geometry) -> CrossHead:
        """Give a fresh head."""
        return CrossHead(spec, geometry)

    @classmethod
    def budget(cls, spec: Probe) -> Budget:
        """Give what the head is fitted with."""
        return Budget(steps=spec.steps, batch=spec.batch, rate=spec.rate, seed=spec.seed)

    @classmethod
    def weights(cls, spec: Probe) -> str | None:
        """Give the file of the fitted head, or None."""
        return spec.weights
