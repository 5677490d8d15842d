"""Memories: parts join by name in the order of what they cover; an empty one costs nothing."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.values.grid import MemoryLimit, Size3
from longtake.core.values.memory import Memory, Part, drop_oldest, join, merge

SIZE = Size3(time=4, height=2, width=2)


def part(
    times: list[float],
    *,
    name: str = "a",
    extent: float = 1.0,
    valid: list[bool] | None = None,
    batch: int = 1,
) -> Part:
    """A part whose tokens, positions and features all say their time."""
    time = torch.tensor(times, dtype=torch.float64).expand(batch, -1)
    zero = torch.zeros_like(time)
    width = torch.full_like(time, extent)
    return Part(
        name=name,
        tokens=time[..., None].float().repeat(1, 1, 3),
        positions=torch.stack([time, zero, zero], dim=-1),
        extents=torch.stack([width, zero + 1, zero + 1], dim=-1),
        valid=torch.tensor(valid or [True] * len(times), dtype=torch.bool).expand(batch, -1),
        features={"f": time[..., None].float() + 0.5},
    )


def memory(*parts: Part, time: int = 4) -> Memory:
    return Memory(parts=parts, size=attrs.evolve(SIZE, time=time))


def times(found: Part) -> list[list[float]]:
    return found.positions[..., 0].tolist()


@pytest.mark.slow
@given(cuts=st.lists(st.lists(st.integers(0, 50), max_size=5), min_size=2, max_size=5))
@settings(max_examples=40, deadline=None)
def test_merged_tokens_stand_in_the_order_of_time(cuts: list[list[int]]) -> None:
    merged = merge([memory(part([float(t) for t in cut])) for cut in cuts])
    (only,) = merged.parts
    wanted = sorted(float(t) for cut in cuts for t in cut)
    assert times(only) == [wanted]
    assert only.tokens[..., 0].tolist() == times(only), "tokens go with their positions"
    assert (only.features["f"][..., 0] - 0.5).tolist() == times(only)


def test_the_order_is_that_of_the_last_latent_covered() -> None:
    wide = part([4.0], extent=5.0)  # covers 2 to 6
    narrow = part([5.0], extent=1.0)
    assert wide.last_covered.tolist() == [[6.0]]
    assert times(merge([memory(wide), memory(narrow)]).parts[0]) == [[5.0, 4.0]]
    same = merge([memory(part([4.0], extent=5.0)), memory(part([6.0]))])
    assert times(same.parts[0]) == [[4.0, 6.0]], "equal ones keep the order given"


def test_padding_goes_last_in_each_sample() -> None:
    first = attrs.evolve(
        part([0.0, 1.0], batch=2), valid=torch.tensor([[True, False], [True, True]])
    )
    merged = merge([memory(first), memory(part([2.0, 3.0], batch=2))]).parts[0]
    assert times(merged) == [[0.0, 2.0, 3.0, 1.0], [0.0, 1.0, 2.0, 3.0]]
    assert merged.valid.tolist() == [[True, True, True, False], [True] * 4]


def test_parts_of_other_names_stand_side_by_side() -> None:
    a, b = part([1.0], name="a"), part([0.0], name="b")
    merged = merge([memory(b, a), memory(part([0.5], name="a"))])
    assert [p.name for p in merged.parts] == ["b", "a"]
    assert times(merged.parts[1]) == [[0.5, 1.0]]
    assert merged.length == 3


def test_one_name_is_one_part() -> None:
    with pytest.raises(ValueError, match=r"two parts of a memory have one name: \['a', 'a'\]"):
        memory(part([0.0]), part([1.0]))


def test_an_empty_memory_costs_nothing() -> None:
    empty = Memory()
    assert (empty.length, empty.joined()) == (0, None)
    assert merge([]).parts == () and merge([empty, empty]).size is None
    some = memory(part([1.0]))
    assert times(merge([empty, some, empty]).parts[0]) == [[1.0]]
    assert merge([empty, some]).size == some.size
    assert memory(part([])).joined() is None
    assert float(empty.anchor()) == 0.0


def test_sizes_must_agree_in_space_and_grow_in_time() -> None:
    merged = merge([memory(part([0.0]), time=3), memory(part([1.0]), time=9)])
    assert merged.size == Size3(time=9, height=2, width=2)
    other = Memory(parts=(part([1.0]),), size=Size3(time=4, height=3, width=2))
    with pytest.raises(ValueError, match="memories of different latent sizes cannot merge"):
        merge([memory(part([0.0])), other])


def test_joined_is_all_tokens_without_features() -> None:
    joined = memory(part([1.0], name="a"), part([0.0], name="b")).joined()
    assert joined is not None and joined.name == "memory" and not joined.features
    assert times(joined) == [[1.0, 0.0]], "parts stay side by side"
    assert joined.tokens.shape == (1, 2, 3)


def test_samples_are_selected_in_any_order() -> None:
    both = attrs.evolve(part([0.0], batch=2), tokens=torch.tensor([[[1.0] * 3], [[2.0] * 3]]))
    twisted = memory(both).select([1, 0, 1])
    assert twisted.parts[0].tokens[:, 0, 0].tolist() == [2.0, 1.0, 2.0]
    assert twisted.parts[0].features["f"].shape == (3, 1, 1)


def test_the_anchor_is_zero_and_reaches_every_token_and_feature() -> None:
    tokens = torch.randn(1, 2, 3, requires_grad=True)
    feature = torch.randn(1, 2, 4, requires_grad=True)
    anchored = attrs.evolve(part([0.0, 1.0]), tokens=tokens, features={"f": feature})
    anchor = memory(anchored).anchor()
    anchor.backward()
    assert float(anchor.detach()) == 0.0
    for leaf in (tokens, feature):
        assert leaf.grad is not None and not bool(leaf.grad.any())


def test_join_keeps_the_order_given() -> None:
    joined = join([part([3.0]), part([1.0, 2.0])])
    assert times(joined) == [[3.0, 1.0, 2.0]]
    assert joined.features["f"].shape == (1, 3, 1)


def staying(last: list[float], limit: MemoryLimit) -> list[float]:
    """By hand: the oldest block goes, first ones aside, until the rest keeps to the limit."""

    def block(latent: float) -> int:
        return math.ceil(latent / limit.block)

    kept = sorted(last)
    first = {block(latent) for latent in range(limit.first)}
    latents = set(range(int(max(last)) + 1))
    while True:
        many = limit.tokens is not None and len(kept) > limit.tokens
        long = limit.latents is not None and len(latents) > limit.latents
        older = sorted({block(x) for x in latents} - first)
        if not (many or long) or len(older) < 2:
            return kept
        latents = {x for x in latents if block(x) != older[0]}
        kept = [x for x in kept if block(x) != older[0]]


@pytest.mark.slow
@given(
    block=st.sampled_from([1, 2, 3, 8]),
    first=st.integers(0, 12),
    more=st.integers(0, 9) | st.none(),
    tokens=st.integers(8, 40) | st.none(),
    times_of=st.lists(st.lists(st.integers(0, 50), max_size=9), min_size=2, max_size=2),
    ahead=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_the_oldest_blocks_go_until_the_rest_keeps_to_the_limit(
    block: int, first: int, more: int | None, tokens: int | None, times_of: list[list[int]],
    ahead: int,
) -> None:  # fmt: skip
    limit = MemoryLimit(block=block, tokens=tokens, first=first)
    if more is not None:
        limit = attrs.evolve(limit, latents=limit.first_covered + block + more)
    settled = memory(
        part([float(t) for t in sorted(times_of[0])], name="a"),
        part([float(t) for t in sorted(times_of[1])], name="b"),
    )
    newest = max((t for each in times_of for t in each), default=0)
    pending = memory(part([float(newest + ahead)], name="a"))
    every = merge([settled, pending])
    ends = [t for each in every.parts for t in times(each)[0]]
    wanted = staying(ends, limit)
    if tokens is not None and len(wanted) > tokens:
        with pytest.raises(ValueError, match=f"have {len(wanted)} tokens, at most {tokens}"):
            drop_oldest(every, limit)
        return
    whole = drop_oldest(every, limit)
    assert sorted(t for each in whole.parts for t in times(each)[0]) == wanted
    assert whole.size == every.size and [p.name for p in whole.parts] == ["a", "b"]
    apart = [drop_oldest(settled, limit, pending), drop_oldest(pending, limit, settled)]
    for one, other in zip(merge(apart).parts, whole.parts, strict=True):
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.positions, other.positions)
        assert torch.equal(one.features["f"], other.features["f"]) and bool(one.valid.all())
    assert drop_oldest(whole, limit) is whole, "nothing more has to go"


def test_dropped_as_it_grows_is_dropped_at_once() -> None:
    limit, grown = MemoryLimit(block=4, latents=13, tokens=11, first=1), Memory()
    whole = memory(part([float(t) for t in range(33)]))
    for end in range(1, 34):
        new = memory(part([float(end - 1)]), time=end)
        grown = drop_oldest(merge([grown, new]), limit)
        assert grown.length <= 11 and grown.size == attrs.evolve(SIZE, time=end)
    assert torch.equal(grown.parts[0].tokens, drop_oldest(whole, limit).parts[0].tokens)
    assert times(grown.parts[0])[0] == [0.0, *range(25, 33)]


def test_each_sample_drops_its_own_and_padding_stands_behind() -> None:
    long = part([0.0, 3.0, 5.0, 8.0], batch=2)
    short = attrs.evolve(long, valid=torch.tensor([[True] * 4, [True, True, False, False]]))
    kept = drop_oldest(memory(short), MemoryLimit(block=1, latents=4)).parts[0]
    assert kept.valid.tolist() == [[True, True], [True, True]]
    assert times(kept) == [[5.0, 8.0], [0.0, 3.0]]
    fewer = drop_oldest(memory(short), MemoryLimit(block=1, latents=3)).parts[0]
    assert fewer.valid.tolist() == [[True], [True]] and times(fewer) == [[8.0], [3.0]]


def test_without_tokens_nothing_has_to_go() -> None:
    limit = MemoryLimit(block=2, latents=2, tokens=1)
    empty = memory(part([]))
    assert drop_oldest(Memory(), limit).length == 0
    assert drop_oldest(empty, limit) is empty
    assert drop_oldest(empty, limit, memory(part([9.0]))).parts[0].tokens.shape == (1, 0, 3)


def test_a_limit_holds_its_first_blocks_and_one_more() -> None:
    assert MemoryLimit(block=4, first=6).first_covered == 9, "blocks 0, 1 and 2 hold latents 0 to 8"
    MemoryLimit(block=4, first=6, latents=13)
    with pytest.raises(ValueError, match="a memory of 12 latents must hold 13"):
        MemoryLimit(block=4, first=6, latents=12)
