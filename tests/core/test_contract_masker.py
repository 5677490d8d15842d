"""The contract of maskers catches each kind of wrong one."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from longtake.core.contract import check_masker
from longtake.core.interfaces.masker import Masker
from longtake.core.values.draws import Draws
from longtake.core.values.history import History, Query
from longtake.core.values.text import Text
from longtake.plugins.maskers.hiding import NoiseMasker
from longtake.plugins.maskers.specs import Noise


class LeavesSomeClean(NoiseMasker):
    """Forgets that `masked` must mask for certain."""

    def masked(self, history: History, text: Text, draws: Draws) -> Query:
        return self(history, text, draws)


class LeavesFramesClean(NoiseMasker):
    def masked(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().masked(history, text, draws)
        query.levels[:, 0] = 0.0
        query.history.latents[:, :, 0] = history.latents[:, :, 0]
        for rate, levels in query.lr_levels.items():
            levels[:, 0] = 0.0
            query.history.lr[rate][:, :, 0] = history.lr[rate][:, :, 0]
        return query


class NoLrLevels(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        return attrs.evolve(super().__call__(history, text, draws), lr_levels={})


class NoLrLevelsWhenMasked(NoiseMasker):
    def masked(self, history: History, text: Text, draws: Draws) -> Query:
        return attrs.evolve(super().masked(history, text, draws), lr_levels={})


class LosesLr(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        return attrs.evolve(query, history=attrs.evolve(query.history, lr={}))


class LosesPixels(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        return attrs.evolve(query, history=attrs.evolve(query.history, pixels=None))


class LevelsOfOneSample(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        lr = {rate: x[:1] for rate, x in query.lr_levels.items()}
        return attrs.evolve(query, lr_levels=lr)


class LevelsInPercent(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        lr = {rate: 100 * x for rate, x in query.lr_levels.items()}
        return attrs.evolve(query, levels=100 * query.levels, lr_levels=lr)


class NotFinite(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        hidden = (query.levels > 0)[:, None, :, None, None]
        latents = query.history.latents.masked_fill(hidden, torch.nan)
        return attrs.evolve(query, history=attrs.evolve(query.history, latents=latents))


class NoQuery(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Any:
        return None


class OmegaAsList(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        return attrs.evolve(query, omega=query.omega.tolist())


class LevelsAreFlags(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        lr = {rate: x > 0 for rate, x in query.lr_levels.items()}
        return attrs.evolve(query, levels=query.levels > 0, lr_levels=lr)


class BlanksTheText(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        text.embeddings.zero_()
        return query


class OtherText(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        return attrs.evolve(query, text=attrs.evolve(text, embeddings=0 * text.embeddings))


class LosesCuts(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        return attrs.evolve(query, history=attrs.evolve(query.history, cuts=()))


class HidesPixelsOfOmega(NoiseMasker):
    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        query = super().__call__(history, text, draws)
        assert query.history.pixels is not None
        hidden = attrs.evolve(query.history, pixels=0 * query.history.pixels)
        return attrs.evolve(query, history=hidden)


class ThinksInSeconds(NoiseMasker):
    """A sound one, which reads the geometry that it was told."""

    def __call__(self, history: History, text: Text, draws: Draws) -> Query:
        assert self.geometry is not None and self.geometry.fps > 0
        return super().__call__(history, text, draws)


WRONG = [
    (NoQuery, "the query is of type NoneType, must be of type Query"),
    (OmegaAsList, "omega is a list, must be a tensor"),
    (LevelsAreFlags, "levels are torch.bool, must be floating-point"),
    (BlanksTheText, "the text that was given was changed in place"),
    (OtherText, "the text of the query is not the one that was given"),
    (LosesCuts, "the cuts of the history were changed"),
    (HidesPixelsOfOmega, "the pixels of omega are not clean"),
    (LeavesSomeClean, "masked.. leaves frames outside omega clean"),
    (LeavesFramesClean, "masked.. leaves frames outside omega clean"),
    (NoLrLevels, "lr_levels of the query lack 2x2x2, 4x4x4"),
    (NoLrLevelsWhenMasked, "lr_levels of the query lack"),
    (LosesLr, "the LR latents of the query lack"),
    (LosesPixels, "the pixels of the history are gone"),
    (LevelsOfOneSample, "LR levels at 2x2x2 is .1, 5., must be .3, 5."),
    (LevelsInPercent, r"HR levels are not in \[0, 1\]"),
    (NotFinite, "latents of the masked history holds values that are not finite"),
]


@pytest.mark.parametrize(("wrong", "line"), WRONG, ids=lambda x: getattr(x, "__name__", ""))
def test_each_wrong_masker_is_caught(wrong: type[Masker[Noise]], line: str) -> None:
    with pytest.raises(AssertionError, match=line) as caught:
        check_masker(wrong(Noise()))
    said = str(caught.value)
    assert "\n" not in said and said.startswith(f"{wrong.__name__} ({__file__}): ")


def test_a_masker_that_reads_the_geometry_passes() -> None:
    masker = ThinksInSeconds(Noise())
    check_masker(masker)
    assert masker.geometry is None, "it is left as it was"


@pytest.mark.parametrize("clean", [0.0, 0.5, 1.0])
def test_any_chance_of_clean_histories_passes(clean: float) -> None:
    check_masker(NoiseMasker(Noise(clean=clean)))
