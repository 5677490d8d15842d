"""Masker: chooses Ω and hides the rest of a history (Stage I, Eq. 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Self, TypeVar

from ..values.draws import Draws
from ..values.grid import Geometry
from ..values.history import History, Query
from ..values.text import Text
from .spec import MaskerSpec

S = TypeVar("S", bound=MaskerSpec)


class Masker(ABC, Generic[S]):
    """Makes a Query of a clean history; built as `cls(spec)`.

    The frames Ω stay clean, all others are masked in both branches; the targets are clean copies
    of Ω, which lies inside each sample's length and is ascending without repetition.

    All randomness comes from `draws`: what the samples share (K, the number of targets) from
    `draws.shared`, what is one sample's own (Ω, levels, noise) from its generator in `draws.each`.
    A sample of a batch of equal lengths is then masked alike whoever its neighbours are, and a
    batch dealt over processes is the batch of one process.

    `geometry` says what latents are of (stride, patch, frames a second), for maskers that think in
    seconds or pixels; who builds a masker for a backbone sets it by `fit_to`, else it is None.
    """

    geometry: Geometry | None = None

    def __init__(self, spec: S) -> None:
        self.spec = spec

    def fit_to(self, geometry: Geometry) -> Self:
        """Tell the masker the shapes of the backbone whose latents it masks; return it."""
        self.geometry = geometry
        return self

    @abstractmethod
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        """Return the query; the history given is left as it is."""

    def masked(self, history: History, text: Text, draws: Draws) -> Query:
        """Return a query whose other frames are masked for certain: what `measure` calls masked.

        Maskers that leave some histories clean override this.
        """
        return self(history, text, draws)
