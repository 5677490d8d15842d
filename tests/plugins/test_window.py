"""A sliding window: the newest latents as the DiT's own tokens, at their absolute places."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import SMALL, sample_fit
from longtake.core.interfaces.compressor import MemoryEncoder
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.history import History
from longtake.core.values.memory import Memory, merge
from longtake.plugins.compressors import keyframes
from longtake.plugins.compressors.keyframes import WindowCompressor
from longtake.plugins.compressors.specs import DualEncoder, Pool, Window

from .streaming import built, check_chunking, check_ragged, history_for, real, sizes

QUICK = settings(max_examples=15, deadline=None)


@QUICK
@given(st.integers(1, 8), sizes, st.data())
def test_any_chunking_gives_the_memory_of_the_whole(
    latents: int, size: Size3, data: st.DataObject
) -> None:
    spec = Window(latents=latents)
    check_chunking(spec, history_for(spec, size), data)


@pytest.mark.slow
@QUICK
@given(st.integers(1, 8), sizes, st.data())
def test_each_sample_of_a_ragged_batch_is_as_alone(
    latents: int, size: Size3, data: st.DataObject
) -> None:
    spec = Window(latents=latents)
    lengths = data.draw(st.lists(st.integers(0, size.time), min_size=2, max_size=3))
    check_ragged(spec, history_for(spec, size, len(lengths)), lengths)


@pytest.mark.slow
@pytest.mark.parametrize("across", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("latents", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_contract(latents: int, across: bool) -> None:
    check_compressor(WindowCompressor, Window(latents=latents, across_cuts=across))


def test_it_is_the_last_latents_tokens_where_they_stand() -> None:
    history = history_for(Window(latents=3), Size3(time=7, height=5, width=8))
    (part,) = built(Window(latents=3))(history).parts
    want = sample_fit().tokens(history.latents[:, :, 4:])  # [B, 3, 3, 4, D]
    assert part.name == "window-3"
    assert torch.allclose(part.tokens, want.flatten(1, 3), rtol=0, atol=1e-12)
    cells = torch.cartesian_prod(torch.arange(12, 15), torch.arange(3), torch.arange(4))
    assert torch.equal(part.positions[0], cells.double())
    assert bool((part.extents == 1).all())


def test_the_state_is_the_window_and_nothing_settles() -> None:
    compressor = built(Window(latents=3))
    history = history_for(compressor.spec, Size3(time=20, height=4, width=4), 1)
    state, held = None, []
    for chunk in history.chunks([1, 1, 1, 1, 6, 10]):
        state, memory = compressor.step(state, chunk)
        assert memory.length == 0 and [part.name for part in memory.parts] == ["window-3"]
        held.append(sum(x.untyped_storage().nbytes() for x in state.values()))
    assert held[2:] == [held[2]] * 4
    assert not compressor.settles and not list(compressor.parameters())


cut_latents = st.lists(st.integers(-2, 24), max_size=4)


def with_cuts(history: History, *latents: list[int]) -> History:
    """Cut before the first frame of latents, counted in the window, for each sample."""
    first = SMALL.vae_stride.time * (int(history.start[0]) - 1) + 1
    cuts = [[(first + SMALL.vae_stride.time * n) / SMALL.fps for n in sorted(row)]
            for row in latents]  # fmt: skip
    return attrs.evolve(history, cuts=tuple(map(tuple, cuts)))


def kept(memory: Memory, index: int = 0, start: int = 8) -> list[int]:
    """The latents of the window that a sample's memory is of."""
    times = [real(memory, index).parts[0].positions[0, :, 0]]
    return sorted({int(t) - start for each in times for t in each.tolist()})


def behind_the_cut(latents: int, total: int, cuts: list[int]) -> list[int]:
    shot = max([0, *(cut for cut in cuts if cut <= total)])
    return list(range(max(shot, total - latents), total))


@pytest.mark.slow
@QUICK
@given(st.integers(1, 6), sizes, cut_latents, cut_latents, st.data())
def test_it_ends_at_the_newest_cut_however_the_history_is_chunked(
    latents: int, size: Size3, one: list[int], two: list[int], data: st.DataObject
) -> None:
    spec = Window(latents=latents)
    history = with_cuts(history_for(spec, size), one, two)
    memory = check_chunking(spec, history, data)
    for index, cuts in enumerate((one, two)):
        assert kept(memory, index) == behind_the_cut(latents, size.time, cuts)
    lengths = data.draw(st.lists(st.integers(0, size.time), min_size=2, max_size=2))
    check_ragged(spec, history, lengths)


@pytest.mark.parametrize(("frame", "first"), [(44, 4), (45, 4), (46, 5), (49, 5), (50, 6)])
def test_a_latent_that_shows_both_shots_is_dropped(frame: int, first: int) -> None:
    """Latent 8 + 4 holds frames 45 to 48, 8 + 5 those to 52."""
    history = history_for(Window(latents=9), Size3(time=9, height=4, width=4), 1)
    history = attrs.evolve(history, cuts=((frame / SMALL.fps,),))
    assert kept(built(Window(latents=9))(history)) == list(range(first, 9))


def test_a_cut_that_is_decided_late_is_as_one_known_before() -> None:
    compressor = built(Window(latents=3))
    history = history_for(compressor.spec, Size3(time=9, height=4, width=4), 2)
    state, _ = compressor.step(None, with_cuts(history, [], []).chunk(0, 5))
    before = {name: x.clone() for name, x in state.items()}
    after = compressor.cut(state)
    assert all(torch.equal(x, before[name]) for name, x in state.items())
    empty = compressor.pending(after)
    assert empty.length == 0 and [part.name for part in empty.parts] == ["window-3"]
    assert compressor(with_cuts(history, [5], [5]).chunk(0, 5)).length == 0
    assert kept(compressor.pending(state)) == [2, 3, 4], "without a cut it is there"
    for length in (1, 4):
        grown, _ = compressor.step(after, with_cuts(history, [5], [5]).chunk(5, 5 + length))
        assert kept(compressor.pending(grown)) == [5, 6, 7, 8][:length][-3:]
        unknown, _ = compressor.step(after, with_cuts(history, [], []).chunk(5, 5 + length))
        whole = compressor(with_cuts(history, [5], [5]).chunk(0, 5 + length))
        for memory in (compressor.pending(grown), compressor.pending(unknown)):
            assert torch.equal(memory.parts[0].tokens, whole.parts[0].tokens)


@pytest.mark.parametrize("kind", ["list", "dual-encoder"])
def test_beside_a_compressed_memory_only_the_window_is_dropped(kind: str) -> None:
    pool, window = Pool(rate=Rate(height=2, width=2, time=2)), Window(latents=2)
    history = with_cuts(history_for(pool, Size3(time=6, height=4, width=4), 1), [])
    members = [built(pool), built(window)]
    encoder = (
        MemoryEncoder(members) if kind == "list" else built(DualEncoder(encoders=(pool, window)))
    )
    state, settled = encoder.step(None, history)
    cut = encoder.cut(state)
    lengths = [
        {p.name: p.tokens.shape[1] for p in merge([settled, encoder.pending(s)]).parts}
        for s in (state, cut)
    ]
    assert lengths[0]["1.window-2"] == 8 and lengths[1]["1.window-2"] == 0
    assert lengths[0]["0.pool-2x2x2"] == lengths[1]["0.pool-2x2x2"] > 0
    known = encoder(with_cuts(history, [6]))
    assert {p.name: p.tokens.shape[1] for p in known.parts} == lengths[1]


def test_across_cuts_nothing_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    keyframes.announce_no_cuts.cache_clear()
    compressor = built(Window(latents=3, across_cuts=True))
    history = history_for(compressor.spec, Size3(time=6, height=4, width=4), 1)
    state, _ = compressor.step(None, with_cuts(history, [5]))
    for memory in (compressor(history), compressor.pending(compressor.cut(state))):
        assert kept(memory) == [3, 4, 5]
    assert not caplog.messages


def test_where_nobody_looked_for_cuts_it_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    keyframes.announce_no_cuts.cache_clear()
    compressor = built(Window(latents=2))
    history = history_for(compressor.spec, Size3(time=4, height=4, width=4), 1)
    compressor(with_cuts(history, []))
    assert not caplog.messages
    compressor(history)
    compressor(history)
    assert len(caplog.messages) == 1 and "cache.cuts=true" in caplog.messages[0]
