"""Token merging: connected regions, what loses least first, budgets met, streaming exact."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import SMALL, sample_fit
from longtake.core.values.grid import Rate, Size3
from longtake.core.values.memory import merge
from longtake.plugins.compressors.merge import MergeCompressor, boxes, neighbours, regions
from longtake.plugins.compressors.specs import Merge

from .streaming import (
    built,
    check_chunking,
    check_ragged,
    cut,
    history_for,
    real,
    same,
    sizes,
    step,
    streamed,
)

QUICK = settings(max_examples=15, deadline=None)
rates = st.builds(lambda h, w, t: Rate(height=h, width=w, time=t), step, step, step)
by_rate = rates.map(lambda rate: Merge(rate=rate, block=max(4, rate.time)))
by_time = st.builds(
    lambda tokens, block: Merge(rate=None, per_second=tokens, block=block),
    st.floats(0.1, 200),
    step,
)
by_threshold = st.builds(
    lambda most, block: Merge(rate=None, threshold=most, block=block), st.floats(0, 3), step
)


@pytest.mark.slow
@QUICK
@given(by_rate | by_time, sizes, st.data())
def test_any_chunking_gives_the_memory_of_the_whole(
    spec: Merge, size: Size3, data: st.DataObject
) -> None:
    check_chunking(spec, history_for(spec, size), data)


@pytest.mark.slow
@QUICK
@given(by_threshold, sizes, st.data())
def test_any_chunking_by_threshold_gives_the_memory_of_the_whole(
    spec: Merge, size: Size3, data: st.DataObject
) -> None:
    compressor, history = built(spec), history_for(spec, size, 3)
    whole = compressor(history)
    merged = streamed(compressor, history, cut(data, size.time))
    assert same(merged, whole)  # padding, too
    assert whole.length <= MergeCompressor.context_length(spec, SMALL, size).tokens
    for part in whole.parts:
        assert bool((part.valid.int().diff(dim=1) <= 0).all())  # which stands behind
    for index in range(3):
        assert same(real(whole, index), compressor(history.select([index])))


@pytest.mark.slow
@QUICK
@given(by_rate | by_time | by_threshold, sizes, st.data())
def test_each_sample_of_a_ragged_batch_is_as_alone(
    spec: Merge, size: Size3, data: st.DataObject
) -> None:
    lengths = data.draw(st.lists(st.integers(0, size.time), min_size=2, max_size=3))
    check_ragged(spec, history_for(spec, size, len(lengths)), lengths)


@pytest.mark.slow
def test_contract() -> None:
    check_compressor(MergeCompressor, Merge(block=2))


@pytest.mark.slow
def test_contract_at_a_budget_by_time() -> None:
    check_compressor(MergeCompressor, Merge(rate=None, per_second=9.0))


@QUICK
@given(by_rate, sizes)
def test_by_rate_it_has_as_many_tokens_as_the_rate_makes(spec: Merge, size: Size3) -> None:
    assert spec.rate is not None
    told = MergeCompressor.context_length(spec, SMALL, size)
    assert told.exact and told.tokens == spec.rate.token_grid(size, SMALL.patch).cells


def test_by_time_it_has_so_many_tokens_a_second() -> None:
    size = Size3(time=1 + 40, height=16, width=16)  # 40 latents of 4 frames at 8 fps: 20 s
    told = MergeCompressor.context_length(Merge(rate=None, per_second=10.0), SMALL, size)
    assert told.exact and told.tokens == 5 + 20 * 10


def labels(x: Tensor, grid: Size3, keep: int, threshold: float | None = None) -> Tensor:
    return regions(x.view(1, grid.cells, -1), grid, keep=keep, threshold=threshold)[0]


def connected(label: Tensor, grid: Size3) -> bool:
    """Whether every region can be walked from its first cell, face to face."""
    reached = label == torch.arange(grid.cells)
    for _ in range(grid.cells):
        for a, b in neighbours(grid).T.tolist():
            if label[a] == label[b] and (reached[a] or reached[b]):
                reached[a] = reached[b] = True
    return bool(reached.all())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(0, 99), st.booleans())
def test_regions_are_connected_and_as_many_as_asked(
    time: int, height: int, width: int, seed: int, flat: bool
) -> None:
    grid = Size3(time=time, height=height, width=width)
    x = torch.randn(grid.cells, 3, generator=torch.Generator().manual_seed(seed)).double()
    keep = 1 + seed % grid.cells
    label = labels(torch.zeros_like(x) if flat else x, grid, keep)
    assert len(label.unique()) == keep
    assert bool((label <= torch.arange(grid.cells)).all()) and connected(label, grid)


def test_neighbours_are_the_six_of_a_cell() -> None:
    pairs = neighbours(Size3(time=3, height=3, width=3)).T.tolist()
    assert len(pairs) == 3 * 2 * 9
    around = sorted(b if a == 13 else a for a, b in pairs if 13 in (a, b))
    assert around == [13 - 9, 13 - 3, 13 - 1, 13 + 1, 13 + 3, 13 + 9]


def test_what_is_alike_merges_and_what_is_not_stays() -> None:
    """Two flat halves and one odd cell: three regions at any chunk of budget."""
    grid = Size3(time=2, height=4, width=6)
    x = torch.zeros(2, 4, 6, 2)
    x[..., 3:, :] = torch.tensor([1.0, -1.0])
    x[0, 1, 1] = 9.0
    label = labels(x, grid, 3).view(2, 4, 6)
    assert label.unique().tolist() == [0, 3, 7]
    assert int((label == 7).sum()) == 1 and int((label == 3).sum()) == 24
    assert torch.equal(label.flatten(), labels(x, grid, 1, threshold=0.1))


def test_a_threshold_is_the_greatest_difference_that_merges() -> None:
    x = torch.tensor([0.0, 1.0, 3.0, 3.5]).view(4, 1)
    grid = Size3(time=1, height=1, width=4)
    assert labels(x, grid, 1, threshold=0.4).tolist() == [0, 1, 2, 3]
    assert labels(x, grid, 1, threshold=0.5).tolist() == [0, 1, 2, 2]
    assert labels(x, grid, 1, threshold=1.0).tolist() == [0, 0, 2, 2]
    assert labels(x, grid, 1, threshold=2.75).tolist() == [0, 0, 0, 0]


def test_regions_do_not_snowball_on_noise() -> None:
    """By likeness of means alone one region takes nearly all and the rest stay single cells."""
    grid = Size3(time=4, height=12, width=12)
    x = torch.randn(grid.cells, 48, generator=torch.Generator().manual_seed(0))
    size = labels(x, grid, 36).bincount()
    size = size[size > 0]
    assert int(size.max()) < 6 * 16 and float(size.float().median()) > 8


def test_rounding_decides_nothing() -> None:
    grid = Size3(time=2, height=8, width=8)
    x = torch.randn(4, 4, 3, generator=torch.Generator().manual_seed(0))
    x = x.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(2, 8, 8, 3)  # many equal cells
    noise = 1e-6 * torch.randn(grid.cells, 3, generator=torch.Generator().manual_seed(1))
    want = labels(x.reshape(-1, 3), grid, 16)
    assert torch.equal(want, labels(x.reshape(-1, 3) + noise, grid, 16))
    assert torch.equal(want, labels(x.reshape(-1, 3).double(), grid, 16))


def test_tokens_are_size_weighted_means_at_the_middle_of_their_box() -> None:
    spec = Merge(rate=Rate.parse("2x2x4"))
    history = history_for(spec, Size3(time=5, height=8, width=8), 1)
    (part,) = built(spec)(history).parts
    assert part.tokens.shape[1] == 4 + 4
    own = sample_fit().tokens(history.latents)[0, 1:].flatten(0, 2)  # [64, D]: the second block
    grid = Size3(time=4, height=4, width=4)
    patches = history.latents.unfold(3, 2, 2).unfold(4, 2, 2).permute(0, 2, 3, 4, 1, 5, 6)
    label = labels(patches[0, 1:].flatten(3).reshape(64, -1), grid, 4)
    low, high = boxes(label[None], grid, 1)
    means = {}
    for first in label.unique().tolist():
        middle = (low[0, first] + high[0, first]) / 2 + torch.tensor([9, 0, 0])  # start 8, block 1
        means[tuple(middle.tolist())] = own[label == first].mean(0)
    found = dict(zip(map(tuple, part.positions[0, 4:].tolist()), part.tokens[0, 4:], strict=True))
    assert found.keys() == means.keys()
    assert all(torch.allclose(found[at], means[at], rtol=0, atol=1e-12) for at in means)
    weight = torch.tensor([int((label == f).sum()) for f in label.unique()])
    assert int(weight.sum()) == 64


def test_a_flat_video_streams_exactly_and_covers_all() -> None:
    """Where all is equal, rounding must not choose: black frames are common."""
    spec = Merge(rate=Rate.parse("4x4x4"))
    history = history_for(spec, Size3(time=13, height=8, width=8), 1)
    history = attrs.evolve(history, latents=torch.full_like(history.latents, 0.1))
    for dtype in (torch.float32, torch.float64):
        compressor, given_ = built(spec).to(dtype), history.to("cpu", dtype)
        whole = compressor(given_)
        again = streamed(compressor, given_, [2, 5, 6])
        assert torch.equal(whole.parts[0].positions, again.parts[0].positions)
        assert torch.equal(whole.parts[0].extents, again.parts[0].extents)


def test_a_limit_on_what_is_searched_at_once_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, size = Merge(), Size3(time=18, height=8, width=8)
    whole = built(spec)(history_for(spec, size))
    monkeypatch.setattr("longtake.plugins.compressors.merge.AT_ONCE", 1)
    assert same(built(spec)(history_for(spec, size)), whole)


def test_the_state_is_less_than_a_block_and_nothing_is_trained() -> None:
    compressor = built(Merge())
    history = history_for(compressor.spec, Size3(time=8, height=6, width=6), 1)
    state, memory = compressor.step(None, history)
    assert state["waiting"].shape[2] == 3 and not list(compressor.parameters())
    (part,) = merge([memory, compressor.pending(state)]).parts
    assert bool((part.last_covered.diff(dim=1) >= 0).all())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"threshold": 0.5}, "exactly one of rate, per_second and threshold must be given"),
        ({"rate": None}, "exactly one of rate, per_second and threshold must be given"),
        ({"rate": None, "threshold": -0.1}, "must be ≥ 0 or null, not -0.1"),
        ({"rate": None, "per_second": 0.0}, "must be > 0 or null, not 0"),
        ({"block": 1}, "blocks of 1 latents hold no block of rate 4x4x2"),
    ],
)
def test_specs_that_mean_nothing_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Merge(**changes)  # type: ignore[arg-type]
