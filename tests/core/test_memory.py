"""Memories: parts join by name in the order of what they cover; an empty one costs nothing."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.values.grid import Size3
from longtake.core.values.memory import Memory, Part, join, merge

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
