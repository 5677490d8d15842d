"""Lengths of sections and segments follow from what was asked for, and drift nowhere."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.errors import UserError
from longtake.core.take.snapping import (
    SLACK,
    Border,
    TakeGrid,
    limit_segments,
    snap_section,
    snap_sections,
    split,
    start_of,
)
from longtake.core.take.storyboard import Section, exact

WAN = TakeGrid(fps=24, period=2, longest=31, window=1, name="wan22-5b")


def sections(*seconds: float | None) -> list[Section]:
    return [Section(prompt="A", seconds=one) for one in seconds]


def test_the_table_of_lengths():
    snapped = snap_sections(sections(5, 4.9, 5.3), WAN, seed=6)
    assert [str(one) for one in snapped] == [
        "asked 0–5.00 s → 0–5.04 s, 121 frames, 1 segment of 31 latents, seed 7",
        "asked 5.00–9.90 s → 5.04–10.04 s, 120 frames, 1 segment of 30 latents, seed 8",
        "asked 9.90–15.20 s → 10.04–15.38 s, 128 frames, "
        "2 segments of 16 + 16 latents, seeds 9, 10",
    ]
    assert snapped[1].section.where == "section 2"


@pytest.mark.parametrize(
    ("end", "last", "latents"),
    [
        ("0.2083", False, 1),  # just under half a step behind the first frame: 5 / 24
        (Fraction(5, 24), False, 3),  # the tie goes up
        ("0.2084", False, 3),
        ("0.05", True, 3),
        (Fraction(1, 24), True, 1),
        (Fraction(121, 24), True, 31),
        ("5.041667", True, 31),  # six decimals of 121 / 24, which is a little less
        ("5.042", True, 33),
        ("5.2", False, 31),
    ],
)
def test_ends_go_to_the_nearest_and_the_last_one_up(end, last, latents):
    assert WAN.snap(Fraction(end), last=last) == latents


def test_seeds_are_the_sections_own_or_the_base_and_the_number():
    boards = [Section(prompt="A", seconds=11, seed=100), Section(prompt="A", seconds=11)]
    made = [seg for one in snap_sections(boards, WAN, seed=40) for seg in one.segments]
    assert [one.seed for one in made] == [100, 101, 102, 44, 45, 46]
    assert [one.number for one in made] == [1, 2, 3, 4, 5, 6]
    assert [one.place for one in made] == [0, 1, 2, 0, 1, 2]


def test_with_a_source_every_latent_is_whole():
    from attrs import evolve

    grid = evolve(WAN, source=61)
    (one,) = snap_sections(sections(5), grid, seed=0, start=start_of(grid, segments=3))
    assert (one.start.latents, one.end.latents, one.frames) == (61, 91, 120)
    assert (one.segments[0].number, one.segments[0].first) == (4, 61)
    assert one.snapped == (0, 5)


def test_what_goes_on_until_stopped():
    first, last = snap_sections(sections(5, None), WAN, seed=0, open_segments=2)
    assert [seg.latents for seg in last.segments] == [30, 30]
    assert str(last) == (
        "asked 5.00–on → 5.04–15.04 s, 240 frames, 2 segments of 30 + 30 latents, seeds 2, 3"
    )
    (only,) = snap_sections(sections(None), WAN, seed=0)
    assert [seg.latents for seg in only.segments] == [31]


def test_sections_that_follow_what_is_made_begin_at_its_border():
    made = snap_sections(sections(5.1), WAN, seed=0)[-1]
    assert made.end.latents == 33, "the last one is rounded up, and stays so"
    (more,) = snap_sections(sections(5), WAN, seed=0, start=made.end)
    assert more.asked == (5.1, 10.1)
    assert more.end.latents == 63, "the end that was asked for in all is rounded, not the length"
    ahead = Border(seconds=Fraction(1, 20), latents=3)
    assert snap_section(sections(0.34)[0], WAN, ahead, seed=0, last=False).end.latents == 5


def test_a_section_of_less_than_a_step_is_refused():
    board = [Section(prompt="A", seconds=0.1, where="a.txt, line 3"), *sections(5, 0.1, 1)]
    step = "0.1 s is less than one step of 0.33 s (2 latents of wan22-5b at 24 fps)"
    with pytest.raises(UserError) as error:
        snap_sections(board, WAN, seed=0)
    assert str(error.value).split("\n") == [f"a.txt, line 3: {step}", f"section 3: {step}"]


def test_segments_that_are_too_long_or_too_short_are_refused():
    assert limit_segments(WAN, None) is WAN
    assert limit_segments(WAN, 5.04).longest == 31
    assert limit_segments(WAN, 2).longest == 13
    with pytest.raises(UserError) as error:
        limit_segments(WAN, 12)
    assert str(error.value) == (
        "segment_seconds 12: this run makes at most 5.04 s (31 latents) at once; "
        "leave it out and sections are split"
    )
    with pytest.raises(UserError) as error:
        limit_segments(WAN, 0.1)
    assert str(error.value) == (
        "segment_seconds 0.1: a segment of wan22-5b has at least 0.38 s (3 latents)"
    )
    with pytest.raises(UserError, match="fewer than one step of 4 latents"):
        split(9, TakeGrid(fps=24, period=4, longest=4, window=1), before=5)


def test_rooms_of_first_and_later_segments_differ():
    grid = TakeGrid(fps=24, period=2, longest=32, window=0)
    assert split(63, grid, before=0) == (31, 32), "a first segment of 33 would be too long"
    wide = TakeGrid(fps=24, period=1, longest=16, window=8)
    assert split(24, wide, before=0) == (16, 8)
    assert split(24, wide, before=1) == (8, 8, 8)


GRIDS = st.builds(
    lambda fps, stride, period, rooms, window, source: TakeGrid(
        fps=fps,
        stride=stride,
        period=period,
        longest=window + max(1, rooms) * period + 1,
        window=window,
        source=source * period + 1 if source else 0,
    ),
    fps=st.sampled_from([8, 16, 24, 25, 23.976, 29.97]),
    stride=st.sampled_from([1, 4, 8]),
    period=st.sampled_from([1, 2, 3, 4, 8]),
    rooms=st.integers(1, 12),
    window=st.integers(0, 5),
    source=st.integers(0, 9),
)
LENGTHS = st.lists(
    st.decimals("0.02", "20", places=2).map(float) | st.floats(0.01, 20), min_size=1, max_size=6
)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(grid=GRIDS, lengths=LENGTHS)
def test_any_sections_snap(grid, lengths):
    asked = sections(*lengths)
    try:
        snapped = snap_sections(asked, grid, seed=1)
    except UserError as error:
        faults = str(error).split("\n")
        assert all("is less than one step" in line for line in faults)
        assert len(faults) <= sum(exact(length) < grid.step for length in lengths)
        return
    total = sum(exact(length) for length in lengths)
    ends = [one.end for one in snapped]
    assert [one.start for one in snapped[1:]] == ends[:-1]
    assert all(end.latents % grid.period == 1 % grid.period for end in ends)
    for one in snapped[:-1]:
        off = grid.frames(one.end.latents) - one.end.seconds * exact(grid.fps)
        half = Fraction(grid.stride * grid.period, 2)
        first = one.end.latents == (grid.source or 1) + (grid.period if grid.source else 0)
        assert -half < off <= half or first
    behind = grid.frames(ends[-1].latents) - total * exact(grid.fps)
    assert -SLACK <= behind
    assert behind < grid.stride * grid.period + 1 or len(lengths) > 1
    for one in snapped:
        segments = one.segments
        assert sum(seg.latents for seg in segments) == one.end.latents - one.start.latents
        assert sum(seg.frames for seg in segments) == one.frames
        assert [seg.number for seg in segments] == list(
            range(one.start.segments + 1, one.end.segments + 1)
        )
        firsts = [seg.first for seg in segments]
        assert firsts[0] == one.start.latents
        assert all(
            b == a + seg.latents for (a, b), seg in zip(pairwise(firsts), segments, strict=False)
        )
    numbers = [seg.number for one in snapped for seg in one.segments]
    assert numbers == list(range(1, len(numbers) + 1))


@settings(deadline=None, max_examples=200)
@given(grid=GRIDS, steps=st.integers(1, 300), before=st.booleans())
def test_segments_are_few_and_as_equal_as_steps_allow(grid, steps, before):
    count = grid.period * steps + (0 if before else 1)
    lengths = split(count, grid, before=grid.period + 1 if before else 0)
    assert sum(lengths) == count
    window = grid.window if before else 0
    rooms = [grid.longest - window, *[grid.longest - grid.window] * (len(lengths) - 1)]
    assert all(0 < length <= room for length, room in zip(lengths, rooms, strict=True))
    bare = [lengths[0] - (0 if before else 1), *lengths[1:]]
    assert all(length % grid.period == 0 for length in bare)
    if before:
        assert max(bare) - min(bare) <= grid.period
        most = (grid.longest - grid.window) // grid.period * grid.period
        assert len(lengths) == ceil(count / most)
