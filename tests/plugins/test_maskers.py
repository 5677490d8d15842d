"""The maskers beside noise: what each does to a frame, and what all share."""

from __future__ import annotations

import copy

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.config import from_json
from longtake.core.contract.masker import check_masker
from longtake.core.contract.samples import SMALL
from longtake.core.errors import UserError
from longtake.core.interfaces.masker import Masker
from longtake.core.interfaces.spec import MaskerSpec
from longtake.core.registry import build
from longtake.core.values.draws import Draws
from longtake.core.values.grid import Rate
from longtake.core.values.history import History, Query
from longtake.core.values.text import Text
from longtake.plugins.maskers.hiding import Branch, HidingMasker
from longtake.plugins.maskers.specs import Drop, Noise, Scale, Shift, Unmasked

RATE = Rate(height=2, width=2, time=2)
TEXT = Text(embeddings=torch.zeros(4, 1, 2), mask=torch.ones(4, 1, dtype=torch.bool))
HIDING = [Noise(clean=0.0), Scale(clean=0.0), Shift(clean=0.0), Drop(clean=0.0)]
ALL = [*HIDING, Drop(clean=0.0, fill="mean"), Unmasked()]


def history(length: list[int] | None = None) -> History:
    generator = torch.Generator().manual_seed(5)
    return History(
        latents=torch.randn(4, 3, 9, 4, 4, generator=generator),
        lr={RATE: torch.randn(4, 3, 5, 2, 2, generator=generator)},
        start=torch.arange(4) * 4,
        length=torch.tensor(length or [9] * 4),
        pixels=torch.randint(256, (4, 3, 33, 8, 8), generator=generator, dtype=torch.uint8),
    )


def ask(spec: MaskerSpec, past: History, seed: int = 0) -> Query:
    masker: Masker[MaskerSpec] = build(spec)
    return masker(past, TEXT, Draws.of(seed, 0, range(past.batch), "test"))


def wide(level: torch.Tensor) -> torch.Tensor:
    return level[:, None, :, None, None]


def kind(spec: MaskerSpec) -> str:
    return type(spec).__name__ + getattr(spec, "fill", "")


@pytest.mark.slow
@pytest.mark.parametrize("spec", ALL, ids=kind)
@pytest.mark.parametrize("where", ["random", "last"])
def test_every_masker_keeps_the_contract(spec: MaskerSpec, where: str) -> None:
    check_masker(build(attrs.evolve(spec, where=where)))


@pytest.mark.slow
@pytest.mark.parametrize("level", ["mean", "max"])
def test_lr_levels_of_every_kind_keep_the_contract(level: str) -> None:
    for spec in HIDING:
        check_masker(build(attrs.evolve(spec, lr_level=level, clean=0.5)))


@pytest.mark.parametrize("spec", HIDING, ids=kind)
def test_contract_catches_pixels_that_still_show(spec: MaskerSpec) -> None:
    cls = type(build(spec))

    class Leaky(cls):  # type: ignore[misc, valid-type]
        def _pixels(self, pixels, *rest):  # type: ignore[no-untyped-def]
            return pixels

    with pytest.raises(AssertionError, match="pixels still show"):
        check_masker(Leaky(spec))


def test_scale_shrinks_values_to_one_minus_the_level() -> None:
    past = history()
    query = ask(Scale(clean=0.0), past)
    expected = (1 - wide(query.levels)) * past.latents
    assert torch.equal(query.history.latents, expected)
    lr = (1 - wide(query.lr_levels[RATE])) * past.lr[RATE]
    assert torch.equal(query.history.lr[RATE], lr)


def test_shift_moves_all_cells_of_a_frame_alike_by_level_times_amount() -> None:
    past = history()
    query = ask(Shift(clean=0.0, amount=2.5), past)
    moved = query.history.latents - past.latents
    assert torch.allclose(moved, moved[..., :1, :1].expand_as(moved), atol=1e-5)
    rms = moved[..., 0, 0].square().mean(dim=1).sqrt()
    assert torch.allclose(rms, 2.5 * query.levels, atol=1e-5)
    hidden = query.levels > 0
    directions = moved[..., 0, 0].movedim(1, -1)[hidden]
    assert float(directions.mean(dim=0).abs().max()) < 1.0  # no direction is preferred


@pytest.mark.parametrize("fill", ["zeros", "mean"])
def test_drop_leaves_nothing_of_a_frame(fill: str) -> None:
    past = history([9, 4, 7, 9])
    query = ask(Drop(clean=0.0, fill=fill, counts=(2,)), past)
    other = attrs.evolve(past, latents=past.latents.flip(-1), lr={})  # same means, other frames
    again = ask(Drop(clean=0.0, fill=fill, counts=(2,)), other)
    hidden = query.levels > 0
    assert bool((query.levels[hidden] == 1).all())
    frames = query.history.latents.transpose(1, 2)
    assert torch.allclose(frames[hidden], again.history.latents.transpose(1, 2)[hidden], atol=1e-6)
    for row, length in enumerate(past.length.tolist()):
        mean = past.latents[row, :, :length].mean(dim=(1, 2, 3))
        want = torch.zeros(3) if fill == "zeros" else mean
        inside = frames[row][hidden[row]]
        assert torch.allclose(inside, want[None, :, None, None].expand_as(inside), atol=1e-6)


def test_none_leaves_the_history_as_it_is_and_says_so() -> None:
    past = history()
    for query in (ask(Unmasked(), past), build(Unmasked()).masked(past, TEXT, _draws())):
        assert query.history is past and not bool(query.levels.any())
        assert not bool(query.lr_levels[RATE].any())
        index = query.omega[:, None, :, None, None].expand(-1, 3, -1, 4, 4)
        assert torch.equal(query.targets, past.latents.gather(2, index))


def _draws() -> Draws:
    return Draws.of(0, 0, range(4), "test")


@pytest.mark.parametrize("spec", ALL, ids=kind)
@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=4), st.integers(0, 99))
def test_last_is_always_the_newest_frames(spec: MaskerSpec, length: list[int], seed: int) -> None:
    query = ask(attrs.evolve(spec, where="last"), history(length), seed)
    count = query.omega.shape[1]
    assert count <= min(length)
    assert query.omega.tolist() == [list(range(n - count, n)) for n in length]


def test_random_asks_for_every_frame() -> None:
    asked = {int(i) for seed in range(60) for i in ask(Unmasked(), history(), seed).omega.flatten()}
    assert asked == set(range(9))


@pytest.mark.parametrize("where", ["random", "last"])
def test_kinds_that_share_a_seed_ask_alike_and_at_the_same_levels(where: str) -> None:
    """So that two maskers are compared on the same frames."""
    past = history()
    queries = [ask(attrs.evolve(spec, where=where), past, 3) for spec in ALL]
    assert all(torch.equal(query.omega, queries[0].omega) for query in queries)
    noise, scale, shift, *_ = queries
    assert torch.equal(noise.levels, scale.levels) and torch.equal(noise.levels, shift.levels)


@pytest.mark.parametrize("spec", ALL, ids=kind)
@settings(deadline=None, max_examples=8)
@given(st.permutations(range(4)), st.integers(1, 3), st.integers(0, 99))
def test_a_batch_dealt_out_is_the_whole_batch(
    spec: MaskerSpec, order: list[int], cut: int, seed: int
) -> None:
    spec = attrs.evolve(spec) if isinstance(spec, Unmasked) else attrs.evolve(spec, clean=0.3)
    past, masker = history(), build(spec)
    whole = ask(spec, past, seed)
    for places in (order[:cut], order[cut:]):
        part = masker(past.select(places), TEXT.select(places), Draws.of(seed, 0, places, "test"))
        assert torch.equal(part.omega, whole.omega[places])
        assert torch.equal(part.history.latents, whole.history.latents[places])
        assert torch.equal(part.history.pixels, whole.history.pixels[places])
        assert torch.equal(part.history.lr[RATE], whole.history.lr[RATE][places])


@pytest.mark.parametrize("spec", ALL, ids=kind)
def test_half_precision_stays_and_an_empty_history_is_refused(spec: MaskerSpec) -> None:
    query = ask(spec, history().to("cpu", torch.bfloat16))
    assert query.history.latents.dtype == query.targets.dtype == torch.bfloat16
    with pytest.raises(UserError, match="empty"):
        ask(spec, history([3, 0, 2, 1]))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"type": "drop", "fill": "noise"}, "masker.fill: must be one of zeros, mean"),
        ({"type": "shift", "amount": 0}, "masker.amount: must be > 0"),
        ({"type": "scale", "where": "first"}, "masker.where: must be one of random, last"),
        ({"type": "none", "clean": 0.5}, "masker.clean: unknown field"),
    ],
)
def test_bad_specs_are_one_line(data: dict[str, object], said: str) -> None:
    from longtake.core.config.faults import SpecError

    with pytest.raises(SpecError) as found:
        from_json(data, MaskerSpec)
    assert len(found.value.faults) == 1
    assert found.value.faults[0].startswith(said.removeprefix("masker."))


class Half(HidingMasker[Drop]):
    """Hides the left half of the frame, at the same place in every branch."""

    seen: list[Branch]

    def hide(
        self, x: torch.Tensor, level: torch.Tensor, length: torch.Tensor, draws: Draws,
        branch: Branch,
    ) -> torch.Tensor:  # fmt: skip
        self.seen.append(branch)
        left = (branch.columns < 0.5).to(x)
        return x * (1 - wide(level) * left)


def test_a_masker_is_told_its_branch_and_where_cells_lie_in_the_frame() -> None:
    past = history()
    masker = Half(Drop(clean=0.0)).fit_to(SMALL)
    masker.seen = []
    query = masker.masked(past, TEXT, _draws())
    assert masker.geometry == SMALL and copy.copy(masker).geometry == SMALL
    named = [(branch.rate, branch.pixels) for branch in masker.seen]
    assert named[0] == (None, False) and {r for r, _ in named[1:] if r} == set(past.lr)
    for branch, (rate, x) in zip(masker.seen[1:], sorted(past.lr.items()), strict=False):
        assert branch.rate == rate and branch.times.tolist()[:2] == [0.0, (rate.time + 1) / 2]
        assert len(branch.rows) == x.shape[3] and len(branch.columns) == x.shape[4]
    hidden = query.levels > 0
    columns = past.latents.shape[-1]
    now, before = query.history.latents, past.latents
    assert torch.equal(now[..., columns // 2 :], before[..., columns // 2 :])
    assert not now[hidden[:, None].expand(now.shape[:3])][..., : columns // 2].any()


def test_frames_of_pixels_lie_in_the_latent_that_they_belong_to() -> None:
    branch = Branch.of(torch.zeros(1, 3, 9, 2, 4), stride=4, pixels=True)
    assert branch.pixels and branch.times.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert branch.rows.tolist() == [0.25, 0.75] and branch.columns[0] == 0.125
