"""The contract of maskers: Ω, targets and noise levels, checked on a random ragged batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from ..interfaces.codec import frames_of
from ..interfaces.masker import Masker
from ..interfaces.spec import MaskerSpec
from ..values.draws import Draws
from ..values.grid import Rate, Size3
from ..values.history import History, Query
from ..values.text import Text
from .samples import (
    SMALL,
    copied,
    names_plugin,
    require,
    require_close,
    require_shape,
    require_type,
    require_unchanged,
)

RATES = (Rate(height=2, width=2, time=2), Rate(height=4, width=4, time=4))
SEEDS = range(8)
LENGTHS = (9, 5, 7)
GEOMETRY = attrs.evolve(SMALL, channels=4, vae_stride=Size3(time=4, height=2, width=2))


@names_plugin
def check_masker(masker: Masker[MaskerSpec]) -> None:
    """Check that a masker keeps the contract of `core.interfaces.masker.Masker`.

    It is run on a ragged batch with two LR rates and pixels; a copy is told their geometry where
    the masker knows none.

    Ω is ascending and inside each length; Ω stays clean and gives the targets; levels say what was
    masked, in both branches; one seed gives one query; the input is left as it is; in a batch of
    equal lengths a sample's query does not depend on its neighbours; `masked` leaves no real frame
    outside Ω clean, unless it is a control that never masks any.

    Raises:
        AssertionError: it does not; one line says what.
    """
    history, text = _batch()
    if masker.geometry is None:
        masker = copy.copy(masker).fit_to(GEOMETRY)
        require_type(masker, Masker, "what fit_to gives")
    before, words = copied(_history_tensors(history)), copied(_text_tensors(text))
    masked = []
    for seed in SEEDS:
        query = masker(history, text, _draws(seed))
        require_unchanged(_history_tensors(history), before, "the history that was given")
        require_unchanged(_text_tensors(text), words, "the text that was given")
        _check_query(query, history, text)
        again = masker(history, text, _draws(seed))
        require_unchanged(
            _query_tensors(again), _query_tensors(query), f"one seed ({seed}): the query"
        )
        _check_neighbours(masker, attrs.evolve(history, length=torch.full((3,), 9)), text, seed)
        certain = masker.masked(history, text, _draws(seed))
        require_unchanged(_history_tensors(history), before, "the history given to `masked`")
        require_unchanged(_text_tensors(text), words, "the text given to `masked`")
        _check_query(certain, history, text)
        masked += [query, certain]
    _check_masked(masked, history)


def _check_query(query: Query, history: History, text: Text) -> None:
    require_type(query, Query, "the query")
    require_type(query.history, History, "the history of the query")
    require_type(query.text, Text, "the text of the query")
    same = copied(_text_tensors(text))
    line = "the text of the query is not the one that was given"
    ours = _text_tensors(query.text)
    require(ours.keys() == same.keys() and all(torch.equal(ours[k], same[k]) for k in same), line)
    require(query.history.cuts == history.cuts, "the cuts of the history were changed")
    _check_tensors(query, history)
    _check_omega(query, history)
    _check_hr(query, history)
    for rate in RATES:
        _check_lr(query, history, rate)


def _check_tensors(query: Query, history: History) -> None:
    """Check that all that a history holds is in the query, in its shapes, with levels for it."""
    for name, levels in (("lr_levels", query.lr_levels), ("the LR latents", query.history.lr)):
        lacking = [str(rate) for rate in RATES if rate not in levels]
        require(not lacking, f"{name} of the query lack {', '.join(lacking)}")
        others = [str(rate) for rate in levels if rate not in RATES]
        require(not others, f"{name} of the query have {', '.join(others)}, the history has not")
    require(query.history.pixels is not None, "the pixels of the history are gone")
    before, after = _history_tensors(history), _history_tensors(query.history)
    for name, x in before.items():
        require_shape(after[name], tuple(x.shape), f"{name} of the masked history")
        line = f"{name} of the masked history are {after[name].dtype}, must be {x.dtype}"
        require(after[name].dtype == x.dtype, line)
    batch, time = history.batch, history.size.time
    require_shape(query.levels, (batch, time), "levels")
    for each in (query.levels, *query.lr_levels.values()):
        kind = each.dtype
        require(kind.is_floating_point, f"levels are {kind}, must be floating-point numbers")
    for rate, x in history.lr.items():
        require_shape(query.lr_levels[rate], (batch, x.shape[2]), f"LR levels at {rate}")


def _check_masked(queries: Sequence[Query], history: History) -> None:
    """Check that `masked`, every second of the queries, masks for certain what is masked at all."""
    if not any(bool(query.levels.any()) for query in queries):
        return  # a control
    frames = torch.arange(history.size.time)
    for query in queries[1::2]:
        asked = (query.omega[:, :, None] == frames).any(dim=1)
        hidden = (frames < history.length[:, None]) & ~asked
        clean = (hidden & (query.levels <= 0)).any(dim=1).nonzero().flatten().tolist()
        line = "masked() leaves frames outside omega clean, though others of them are masked"
        require(not clean, f"{line} (sample {', '.join(map(str, clean))})")


def _draws(seed: int, places: Sequence[int] = range(len(LENGTHS))) -> Draws:
    return Draws.of(seed, 0, places, "contract")


def _check_neighbours(masker: Masker[MaskerSpec], history: History, text: Text, seed: int) -> None:
    together = _query_tensors(masker(history, text, _draws(seed)))
    for place in range(history.batch):
        one, own = history.select([place]), text.select([place])
        alone = _query_tensors(masker(one, own, _draws(seed, [place])))
        rows = {name: x[place : place + 1] for name, x in together.items()}
        same = alone.keys() == rows.keys() and all(torch.equal(alone[k], rows[k]) for k in rows)
        require(same, f"sample {place} is masked otherwise without its neighbours: use draws.each")


def _batch() -> tuple[History, Text]:
    generator = torch.Generator().manual_seed(1)
    batch, time = len(LENGTHS), max(LENGTHS)
    history = History(
        latents=torch.randn(batch, 4, time, 4, 4, generator=generator),
        lr={
            rate: torch.randn(
                batch, 4, rate.settled_tokens(time), 4 // rate.height, 4 // rate.width,
                generator=generator,
            )
            for rate in RATES
        },
        start=torch.arange(batch) * 8,
        length=torch.tensor(LENGTHS),
        pixels=torch.randint(
            256, (batch, 3, 4 * time - 3, 8, 8), generator=generator, dtype=torch.uint8
        ),
        cuts=((1.5,), (), (0.5, 2.0)),
    )  # fmt: skip
    mask = torch.ones(batch, 2, dtype=torch.bool)
    return history, Text(embeddings=torch.randn(batch, 2, 6, generator=generator), mask=mask)


def _history_tensors(history: History) -> dict[str, Tensor]:
    own = {"latents": history.latents, "start": history.start, "length": history.length}
    lr = {f"lr {rate}": x for rate, x in history.lr.items()}
    pixels = {} if history.pixels is None else {"pixels": history.pixels}
    return own | lr | pixels


def _text_tensors(text: Text) -> dict[str, Tensor]:
    pooled = {} if text.pooled is None else {"pooled": text.pooled}
    return {"embeddings": text.embeddings, "mask": text.mask, **pooled}


def _query_tensors(query: Query) -> dict[str, Tensor]:
    own = {"omega": query.omega, "targets": query.targets, "levels": query.levels}
    levels = {f"levels {rate}": x for rate, x in query.lr_levels.items()}
    return own | levels | _history_tensors(query.history)


def _check_omega(query: Query, history: History) -> None:
    omega = query.omega
    require(isinstance(omega, Tensor), f"omega is a {type(omega).__name__}, must be a tensor")
    fits = omega.dtype == torch.int64 and omega.dim() == 2 and len(omega) == history.batch
    require(fits, f"omega is {omega.dtype} {tuple(omega.shape)}, must be int64 [B, K]")
    require(omega.shape[1] > 0, "omega is empty: nothing is asked")
    require(bool((omega.diff(dim=1) > 0).all()), "omega is not ascending without repetition")
    inside = (omega >= 0) & (omega < history.length[:, None])
    require(bool(inside.all()), "omega is not inside each sample's length")
    same = torch.equal(query.history.start, history.start)
    same = same and torch.equal(query.history.length, history.length)
    require(same, "start or length of the history was changed")


def _check_hr(query: Query, history: History) -> None:
    index = query.omega[:, None, :, None, None].expand(-1, 4, -1, 4, 4)
    clean = history.latents.gather(2, index)
    require_close(query.targets, clean, 0.0, "targets are not the clean latents of omega")
    seen = query.history.latents.gather(2, index)
    require_close(seen, clean, 0.0, "omega is not clean in the masked history")
    require(not bool(query.levels.gather(1, query.omega).any()), "omega has a level above 0")
    _check_levels(query.history.latents, history.latents, query.levels, "HR")
    if query.history.pixels is not None and history.pixels is not None and query.levels.any():
        unchanged = torch.equal(query.history.pixels, history.pixels)
        require(not unchanged, "latents are masked, but the pixels still show the video")
        _check_pixels(query, query.history.pixels, history.pixels)


def _check_pixels(query: Query, seen: Tensor, clean: Tensor) -> None:
    """Check that the pixels of Ω show the video, as its latents do."""
    stride = GEOMETRY.vae_stride.time
    for row, frames in enumerate(query.omega.tolist()):
        for latent in frames:
            at = frames_of(latent, stride)
            own, true = (x[row, :, at.start : at.stop] for x in (seen, clean))
            require(torch.equal(own, true), "the pixels of omega are not clean")


def _check_lr(query: Query, history: History, rate: Rate) -> None:
    levels, count = query.lr_levels[rate], history.lr[rate].shape[2]
    _check_levels(query.history.lr[rate], history.lr[rate], levels, f"LR {rate}")
    for j in range(count):
        covered = query.levels[:, max(0, rate.time * (j - 1) + 1) : rate.time * j + 1]
        low, high = covered.amin(dim=1) - 1e-6, covered.amax(dim=1) + 1e-6
        fits = (levels[:, j] >= low) & (levels[:, j] <= high)
        line = f"LR latent {j} at {rate} has a level outside those of the HR latents it covers"
        require(bool(fits.all()), line)


def _check_levels(masked: Tensor, clean: Tensor, levels: Tensor, branch: str) -> None:
    require(bool(((levels >= 0) & (levels <= 1)).all()), f"{branch} levels are not in [0, 1]")
    changed = (masked != clean).flatten(3).any(dim=3).any(dim=1)
    noisy = levels > 0
    require(not bool((changed & ~noisy).any()), f"{branch} latents of level 0 are not clean")
    require(not bool((noisy & ~changed).any()), f"{branch} latents of a level above 0 are clean")
