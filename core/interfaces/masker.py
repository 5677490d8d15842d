"""Masker: chooses Ω and hides the rest of a history (Stage I, Eq. 3)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Self, TypeVar

from torch import Tensor

from ..errors import ContractError, plugin_label
from ..values.draws import Draws
from ..values.grid import Geometry
from ..values.history import History, Query
from ..values.text import Text
from .checks import check_shape, check_type
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

    def query(self, history: History, text: Text, draws: Draws, *, certain: bool = False) -> Query:
        """Return the query that the plugin makes, its shapes checked; `certain`: by `masked`.

        Raises:
            ContractError: it is no query, or what is in it is not of the history's shapes.
        """
        made = self.masked(history, text, draws) if certain else self(history, text, draws)
        check_type(self, "its query", made, Query)
        _check_query(self, made, history)
        return made

    @abstractmethod
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        """Return the query; the history given is left as it is."""

    def masked(self, history: History, text: Text, draws: Draws) -> Query:
        """Return a query whose other frames are masked for certain: what `measure` calls masked.

        Maskers that leave some histories clean override this.
        """
        return self(history, text, draws)


def _check_query(masker: Masker[S], query: Query, history: History) -> None:
    """Raise ContractError if Ω, targets, levels or the masked history have other shapes."""
    check_type(masker, "omega", query.omega, Tensor)
    shape = tuple(history.latents.shape)
    batch, channels, time, *size = shape
    count = query.omega.shape[-1] if query.omega.dim() else 0
    check_shape(masker, "omega", query.omega, (batch, count), "B K")
    check_shape(masker, "targets", query.targets, (batch, channels, count, *size), "B C K H W")
    check_shape(masker, "levels", query.levels, (batch, time), "B T")
    check_shape(masker, "the masked latents", query.history.latents, shape, "B C T H W")
    for rate, lr in history.lr.items():
        for name, held in (("levels", query.lr_levels), ("latents", query.history.lr)):
            if rate not in held:
                held_rates = ", ".join(map(str, held)) or "none"
                raise ContractError(
                    f"{plugin_label(masker)}: LR {name}: {rate} is expected, but there are those "
                    f"of {held_rates}"
                )
        what = f"LR levels at {rate}"
        check_shape(masker, what, query.lr_levels[rate], (batch, lr.shape[2]), "B T'")
        what = f"the masked LR latents at {rate}"
        check_shape(masker, what, query.history.lr[rate], tuple(lr.shape), "B C T' H' W'")
