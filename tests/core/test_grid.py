"""Grid arithmetic: the table of method.md §2, LR and chunks, and where memory tokens sit."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.values.grid import STEPS, Geometry, Rate, Size3, ceil_div, shared_period
from longtake.core.values.history import History, lr_between
from longtake.core.values.memory import grid_part, token_places

PATCH = Size3(time=1, height=2, width=2)
rates = st.builds(Rate, **dict.fromkeys(("height", "width", "time"), st.sampled_from(STEPS)))
sizes = st.builds(
    Size3, time=st.integers(1, 40), height=st.integers(1, 40), width=st.integers(1, 40)
)
quick = settings(max_examples=60, deadline=None)


def geometry(space: int, fps: float = 24.0) -> Geometry:
    stride = Size3(time=4, height=space, width=space)
    return Geometry(channels=16, vae_stride=stride, patch=PATCH, width=8, blocks=1, fps=fps)


# method.md §2: 20 s of 480×832 at 24 fps, (floor, ceil) tokens, T/r memory frames as the paper.
TABLE = {
    (8, "1x1x1"): (187_200, 187_200),
    (8, "2x2x1"): (46_800, 46_800),
    (8, "2x2x2"): (23_400, 23_400),
    (8, "2x2x4"): (11_700, 11_700),
    (8, "4x4x2"): (5_460, 6_240),
    (8, "2x2x8"): (5_850, 5_850),
    (16, "1x1x1"): (46_800, 46_800),
    (16, "2x2x1"): (10_920, 12_480),
    (16, "2x2x2"): (5_460, 6_240),
    (16, "2x2x4"): (2_730, 3_120),
    (16, "4x4x2"): (1_080, 1_680),
    (16, "2x2x8"): (1_365, 1_560),
}


@pytest.mark.parametrize(("space", "text"), TABLE)
def test_context_lengths_of_the_paper_and_ours(space: int, text: str) -> None:
    shapes, rate = geometry(space), Rate.parse(text)
    size = shapes.latent_size(frames=shapes.frames(20), height=480, width=832)
    assert (size.time, shapes.frames(20)) == (120, 477)
    grids = [rate.token_grid(size, PATCH, rounding) for rounding in ("floor", "ceil")]
    area = [grid.height * grid.width for grid in grids]
    assert tuple(120 // rate.time * cells for cells in area) == TABLE[space, text]
    ours = 1 + -(-119 // rate.time)
    assert [grid.cells for grid in grids] == [ours * cells for cells in area]


def test_the_figures_that_the_text_names() -> None:
    size = geometry(8).latent_size(frames=477, height=480, width=832)
    assert Rate.parse("4x4x2").token_grid(size, PATCH).cells == 6_344
    a_second_more = Size3(time=size.time + 6, height=size.height, width=size.width)
    assert Rate.parse("4x4x2").token_grid(a_second_more, PATCH).cells - 6_344 == 312
    portrait = Size3(time=120, height=size.width, width=size.height)
    assert Rate.parse("4x4x2").token_grid(portrait, PATCH).cells == 6_344


@pytest.mark.parametrize(
    ("seconds", "fps", "frames", "latents"),
    [(20, 24, 477, 120), (5, 24, 117, 30), (0.1, 8, 0, 0), (0.2, 8, 1, 1), (10, 8, 77, 20),
     (20, 16, 317, 80), (0.3, 10, 1, 1), (60, 24, 1437, 360), (4.125, 8, 33, 9),
     (0.29, 100, 29, 8)],
)  # fmt: skip
def test_seconds_to_frames_to_latents(
    seconds: float, fps: float, frames: int, latents: int
) -> None:
    shapes = geometry(8, fps)
    assert shapes.frames(seconds) == shapes.frames(seconds, fps) == frames
    assert shapes.latents(frames) == latents
    assert frames == 0 or frames % 4 == 1


def test_sizes_round_up_and_multiples() -> None:
    assert geometry(16).multiple == (32, 32)
    assert geometry(8).latent_size(frames=5, height=481, width=8) == Size3(
        time=2, height=61, width=1
    )


@given(rate=rates)
@quick
def test_a_rate_is_read_as_it_is_written(rate: Rate) -> None:
    assert Rate.parse(str(rate)) == rate == Rate.parse(f" {rate} ".replace("x", "×"))


NO_RATES = ["", "2x2", "2x2x2x2", "axbxc", "2 x2x2", "-2x2x2", "3x1x1", "0x1x1", "16x1x1", "2.x2x2"]


@pytest.mark.parametrize("text", NO_RATES)
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="a rate "):
        Rate.parse(text)


@given(rate=rates, size=sizes)
@quick
def test_the_past_is_covered_once_and_nothing_is_dropped(rate: Rate, size: Size3) -> None:
    tokens, settled = rate.time_tokens(size.time), rate.settled_tokens(size.time)
    covered = rate.settled_latents(size.time)
    assert settled <= tokens <= settled + 1
    assert covered <= size.time < covered + rate.time
    assert (tokens == settled) == (covered == size.time)
    assert rate.lr_size(size).time == settled
    floor, ceil = (rate.token_grid(size, PATCH, how) for how in ("floor", "ceil"))
    assert floor.time == ceil.time == tokens
    assert (floor.height, floor.width) == (
        size.height // (2 * rate.height), size.width // (2 * rate.width)
    )  # fmt: skip
    for kept, part, cells, step in (
        (ceil.height, floor.height, size.height, 2 * rate.height),
        (ceil.width, floor.width, size.width, 2 * rate.width),
    ):
        assert kept == part + (cells % step > 0)


def test_no_history_has_no_tokens() -> None:
    rate = Rate.parse("2x2x4")
    assert (rate.time_tokens(0), rate.settled_tokens(0), rate.settled_latents(0)) == (0, 0, 0)
    assert shared_period(()) == 1
    assert shared_period((rate, Rate.parse("1x1x8"))) == 8


@given(rate=rates, lengths=st.lists(st.integers(1, 7), min_size=1, max_size=8))
@quick
def test_each_lr_latent_travels_in_one_chunk(rate: Rate, lengths: list[int]) -> None:
    total = sum(lengths)
    count = rate.settled_tokens(total)
    latents = torch.arange(total, dtype=torch.float32).view(1, 1, total, 1, 1)
    lr = torch.arange(count, dtype=torch.float32).view(1, 1, count, 1, 1)
    chunks = list(History(latents=latents, lr={rate: lr}).chunks(lengths))
    assert torch.equal(torch.cat([c.latents for c in chunks], dim=2), latents)
    assert torch.equal(torch.cat([c.lr[rate] for c in chunks], dim=2), lr)
    for chunk in chunks:
        last = chunk.offset + chunk.size.time
        for j in chunk.lr[rate].flatten().tolist():
            assert chunk.offset <= rate.time * j < last, "LR latent j travels with HR latent r·j"


@given(first=st.integers(0, 50), length=st.integers(1, 50), rate=rates)
@quick
def test_lr_between_counts_multiples(first: int, length: int, rate: Rate) -> None:
    found = range(100)[lr_between(rate, first, first + length)]
    wanted = [j for j in range(100) if first <= rate.time * j < first + length]
    assert list(found) == wanted


def test_only_whole_even_windows_are_cut() -> None:
    history = History(latents=torch.zeros(1, 1, 4, 1, 1))
    for first, last in ((0, 0), (2, 1), (0, 5), (-1, 2)):
        with pytest.raises(ValueError, match="are not in a window of 4"):
            history.chunk(first, last)
    with pytest.raises(ValueError, match="only a whole window"):
        history.chunk(1, 4).chunk(0, 1)
    ragged = History(latents=torch.zeros(2, 1, 4, 1, 1), length=torch.tensor([4, 2]))
    with pytest.raises(ValueError, match="only a whole window"):
        ragged.chunk(0, 2)
    with pytest.raises(ValueError, match="chunks of 3 latents for a window of 4"):
        list(history.chunks([1, 2]))


def test_a_batch_is_selected_in_any_order() -> None:
    latents = torch.arange(3.0).view(3, 1, 1, 1, 1)
    history = History(latents=latents, start=torch.tensor([5, 6, 7]), cuts=((1.0,), (), (2.0,)))
    twisted = history.select([2, 0])
    assert twisted.latents.flatten().tolist() == [2.0, 0.0]
    assert (twisted.start.tolist(), twisted.cuts) == ([7, 5], ((2.0,), (1.0,)))


def places(rate: Rate, size: Size3, start: int = 0, skip: int = 0) -> list[torch.Tensor]:
    whole = rate.token_grid(size, PATCH)
    grid = Size3(time=whole.time - skip, height=whole.height, width=whole.width)
    return list(
        token_places(
            rate, size, PATCH, grid,
            start=torch.tensor([start]), length=torch.tensor([size.time]), skip=skip,
        )
    )  # fmt: skip


@given(rate=rates, size=sizes, start=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_tokens_sit_at_the_middle_of_what_they_cover(rate: Rate, size: Size3, start: int) -> None:
    positions, extents, valid = places(rate, size, start)
    grid = rate.token_grid(size, PATCH)
    assert positions.shape == extents.shape == (1, grid.cells, 3)
    assert positions.dtype == torch.float64 and bool(valid.all())
    rows, columns = ceil_div(size.height, 2), ceil_div(size.width, 2)
    cells = itertools.product(range(grid.time), range(grid.height), range(grid.width))
    for n, (j, h, w) in enumerate(cells):
        covered = [
            range(max(0, rate.time * (j - 1) + 1), min(rate.time * j, size.time - 1) + 1),
            range(rate.height * h, min(rate.height * (h + 1), rows)),
            range(rate.width * w, min(rate.width * (w + 1), columns)),
        ]  # fmt: skip
        middle = [(block[0] + block[-1]) / 2 for block in covered]
        middle[0] += start
        assert positions[0, n].tolist() == middle
        assert extents[0, n].tolist() == [len(block) for block in covered]


@given(rate=rates, size=sizes)
@quick
def test_whole_cells_stand_evenly_also_where_the_frame_ends(rate: Rate, size: Size3) -> None:
    grid = rate.token_grid(size, PATCH, "whole")
    assert grid == rate.token_grid(size, PATCH)
    tokens = torch.zeros(1, grid.time, grid.height * grid.width, 1)
    given = {"rate": rate, "size": size, "patch": PATCH, "start": torch.tensor([0])}
    length = torch.tensor([size.time])
    part = grid_part("even", tokens, length=length, rounding="whole", **given)
    cut = grid_part("cut", tokens, length=length, **given)
    assert torch.equal(part.positions[..., 0], cut.positions[..., 0])
    for axis, (count, step) in enumerate(((grid.height, rate.height), (grid.width, rate.width)), 1):
        even = [step * cell + (step - 1) / 2 for cell in range(count)]
        assert sorted(set(part.positions[0, :, axis].tolist())) == even
        assert set(part.extents[0, :, axis].tolist()) == {float(step)}


@pytest.mark.parametrize("step", STEPS)
def test_time_of_complete_and_provisional_tokens(step: int) -> None:
    rate = Rate(height=1, width=1, time=step)
    size = Size3(time=1 + 3 * step, height=2, width=2)
    times = places(rate, size)[0][0, :, 0].tolist()
    assert times == [0.0] + [step * j - (step - 1) / 2 for j in (1, 2, 3)]
    for extra in range(1, step):
        provisional = Size3(time=1 + 3 * step + extra, height=2, width=2)
        positions, extents, _ = places(rate, provisional)
        assert positions[0, :4, 0].tolist() == times, "complete tokens do not move"
        assert extents[0, -1, 0] == extra
        assert positions[0, -1, 0] == 3 * step + (1 + extra) / 2


def test_a_later_chunk_continues_the_grid() -> None:
    rate, size = Rate.parse("2x2x2"), Size3(time=9, height=8, width=8)
    for whole, tail in zip(places(rate, size, 16), places(rate, size, 16, skip=3), strict=True):
        assert torch.equal(whole[:, -tail.shape[1] :], tail)


def test_padding_is_not_valid() -> None:
    rate, size = Rate.parse("2x2x2"), Size3(time=5, height=4, width=4)
    grid = rate.token_grid(size, PATCH)
    length = torch.tensor([5, 2, 1])
    start = torch.zeros(3, dtype=torch.int64)
    _, _, valid = token_places(rate, size, PATCH, grid, start=start, length=length, skip=0)
    assert valid.tolist() == [[True] * 3, [True, True, False], [True, False, False]]
