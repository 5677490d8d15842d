"""Keyframes: every so many latents or each shot's first, the newest of them."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import SMALL, sample_fit
from longtake.core.errors import UserError
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.history import History
from longtake.plugins.compressors.keyframes import KeyframesCompressor, first_latent
from longtake.plugins.compressors.specs import Keyframes

from .streaming import built, check_chunking, check_ragged, history_for, sizes

QUICK = settings(max_examples=15, deadline=None)
step = st.sampled_from([1, 2, 4])
every_so_many = st.builds(
    lambda every, newest, h, w: Keyframes(
        every=every, newest=newest, rate=Rate(height=h, width=w, time=1)
    ),
    st.none() | st.integers(1, 9),
    st.integers(1, 5),
    step,
    step,
)


def frames(history: History, **spec: object) -> list[list[int]]:
    """Give the absolute latents that are kept of each sample."""
    (part,) = built(Keyframes(rate=Rate.parse("8x8x1"), **spec))(history).parts  # type: ignore[arg-type]
    rows = zip(part.positions[..., 0], part.valid, strict=True)
    return [[int(t) for t in times[valid].unique()] for times, valid in rows]


def filmed(cuts: tuple[tuple[float, ...], ...], time: int = 12, start: int = 0) -> History:
    history = history_for(Keyframes(), Size3(time=time, height=4, width=4), len(cuts))
    return attrs.evolve(history, cuts=cuts, start=torch.full((len(cuts),), start))


@QUICK
@given(every_so_many, sizes, st.data())
def test_any_chunking_gives_the_memory_of_the_whole(
    spec: Keyframes, size: Size3, data: st.DataObject
) -> None:
    check_chunking(spec, history_for(spec, size), data)


@QUICK
@given(every_so_many, st.booleans(), sizes, st.data())
def test_any_chunking_by_shots_of_each_sample_gives_the_memory_of_the_whole(
    spec: Keyframes, ragged: bool, size: Size3, data: st.DataObject
) -> None:
    spec = attrs.evolve(spec, shots=True)
    times = st.lists(st.floats(0, 12), max_size=4).map(lambda cuts: tuple(sorted(cuts)))
    history = attrs.evolve(history_for(spec, size), cuts=(data.draw(times), data.draw(times)))
    if ragged:
        check_ragged(spec, history, [size.time, data.draw(st.integers(0, size.time))])
    else:
        check_chunking(spec, history, data)


@pytest.mark.slow
@QUICK
@given(every_so_many, sizes, st.data())
def test_each_sample_of_a_ragged_batch_is_as_alone(
    spec: Keyframes, size: Size3, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, size.time), min_size=2, max_size=3))
    check_ragged(spec, history_for(spec, size, len(lengths)), lengths)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec",
    [
        Keyframes(every=3, newest=2),
        pytest.param(Keyframes(every=None, rate=Rate.parse("2x4x1")), marks=pytest.mark.slow),
    ],
)
def test_contract(spec: Keyframes) -> None:
    check_compressor(KeyframesCompressor, spec)


def test_keyframes_are_the_dits_tokens_of_their_latents_where_they_stand() -> None:
    spec = Keyframes(every=4, newest=2)
    history = history_for(spec, Size3(time=11, height=4, width=6))
    (part,) = built(spec)(history).parts
    want = sample_fit().tokens(history.latents[:, :, [4, 8]]).flatten(1, 3)
    assert torch.allclose(part.tokens, want, rtol=0, atol=1e-12)
    assert part.positions[0, :, 0].tolist() == [12.0] * 6 + [16.0] * 6
    assert bool((part.extents == 1).all())


def test_a_rate_takes_means_of_a_latents_cells() -> None:
    spec = Keyframes(every=None, rate=Rate.parse("2x4x1"))
    history = history_for(spec, Size3(time=3, height=6, width=12))
    (part,) = built(spec)(history).parts
    own = sample_fit().tokens(history.latents[:, :, :1])[:, 0]  # [B, 3, 6, D]
    assert torch.allclose(part.tokens[:, 0], own[:, :2, :4].mean((1, 2)), rtol=0, atol=1e-12)
    assert torch.allclose(part.tokens[:, 3], own[:, 2:, 4:].mean((1, 2)), rtol=0, atol=1e-12)
    assert part.positions[0, 3].tolist() == [8.0, 2.0, 4.5]
    assert part.extents[0, 3].tolist() == [1.0, 1.0, 2.0]


def test_which_latents_are_kept() -> None:
    plain = filmed(((), ()))
    assert frames(plain, every=5)[0] == [0, 5, 10]
    assert frames(plain, every=5, newest=2)[0] == [5, 10]
    assert frames(plain, every=None)[0] == [0]
    # SMALL has 8 frames a second and 4 frames a latent: latent i shows frames 4i − 3 … 4i.
    shots = filmed(((1.125, 4.2), ()))
    assert frames(shots, every=None, shots=True) == [[0, 3, 10], [0]]
    assert frames(shots, every=5, shots=True) == [[0, 3, 8, 10], [0, 5, 10]]
    later = filmed(((1.125, 4.2),), start=8)
    assert frames(later, every=None, shots=True) == [[8, 10]]


@pytest.mark.parametrize(
    ("frame", "latent"), [(0, 0), (1, 1), (2, 2), (5, 2), (6, 3), (9, 3), (10, 4)]
)
def test_a_shot_begins_with_the_first_latent_wholly_behind_the_cut(frame: int, latent: int) -> None:
    assert first_latent(SMALL, frame / SMALL.fps) == latent


def test_a_cut_after_the_window_or_before_it_changes_nothing() -> None:
    near, far = filmed(((),), start=8), filmed(((0.5, 90.0),), start=8)
    assert frames(near, every=5, shots=True) == frames(far, every=5, shots=True) == [[8, 13, 18]]


def test_shots_without_cut_times_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"which this history has not: cache with cache\.cuts=true"):
        frames(attrs.evolve(filmed(((),)), cuts=()), shots=True)


def test_the_length_is_a_bound_where_cuts_decide() -> None:
    size = Size3(time=30, height=8, width=8)
    length = KeyframesCompressor.context_length(Keyframes(shots=True, newest=5), SMALL, size)
    assert (length.tokens, length.exact) == (5 * 16, False)


def test_the_state_is_the_keyframes() -> None:
    compressor = built(Keyframes(every=2, newest=3))
    history = history_for(compressor.spec, Size3(time=24, height=4, width=4), 1)
    state, held = None, []
    for chunk in history.chunks([1, 4, 9, 10]):
        state, memory = compressor.step(state, chunk)
        assert memory.length == 0
        held.append(sum(x.untyped_storage().nbytes() for x in state.values()))
    assert held[1:] == [held[1]] * 3 and not list(compressor.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"every": 0}, "must be ≥ 1 or null, not 0"),
        ({"rate": Rate.parse("2x2x2")}, "a keyframe is one latent: must be 2x2x1"),
    ],
)
def test_specs_that_mean_nothing_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Keyframes(**changes)  # type: ignore[arg-type]
