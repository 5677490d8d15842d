"""Windows: a pure function of the step, however its batch is dealt out."""

from __future__ import annotations

import random
from typing import NoReturn

import pytest
import torch

from longtake.core.data.windows import Bucket
from longtake.core.values.draws import Draws


def test_a_sample_draws_by_its_place_and_no_other() -> None:
    whole = Draws.of(3, 7, range(6), "loss")
    part = Draws.of(3, 7, (4, 1), "loss")
    together, alone = whole.normal(5, 2), part.normal(5, 2)
    assert torch.equal(alone, together[[4, 1]])
    assert together.unique().numel() == together.numel(), "no two samples share their numbers"
    shared = [torch.rand((), generator=draws.shared) for draws in (whole, part)]
    assert shared[0] == shared[1]


def test_purpose_step_and_seed_give_other_numbers() -> None:
    def drawn(seed: int, step: int, salt: str) -> float:
        return float(Draws.of(seed, step, (0,), salt).uniform())

    numbers = {drawn(0, 0, "loss"), drawn(1, 0, "loss"), drawn(0, 1, "loss"), drawn(0, 0, "gain")}
    assert len(numbers) == 4


class Clip:
    """A record that may not be compared, and counts how often its length is read."""

    reads = 0

    def __init__(self, number: int, latents: int) -> None:
        self.number, self._latents = number, latents

    @property
    def latents(self) -> int:
        Clip.reads += 1
        return self._latents

    def __eq__(self, other: object) -> NoReturn:
        raise AssertionError("records are compared")


def drawn_plainly(rng: random.Random, latents: list[int], count: int, length: int) -> list[int]:
    """What `Bucket.draw` means, a clip at a time: numbers of clips."""
    fitting = [number for number, n in enumerate(latents) if n >= length]
    drawn: list[int] = []
    while len(drawn) < count:
        left = [n for n in fitting if n not in drawn[-(len(fitting) - 1) :]] or fitting
        drawn.append(rng.choices(left, weights=[latents[n] ** 0.5 for n in left])[0])
    return drawn


@pytest.mark.parametrize("clips", [1, 2, 3, 7, 40, 500])
def test_clips_are_drawn_by_the_root_of_their_length_and_none_twice(clips: int) -> None:
    latents = [random.Random(clips).randint(5, 121) for _ in range(clips)]
    bucket = Bucket([Clip(number, n) for number, n in enumerate(latents)])  # type: ignore[arg-type, misc]
    for seed, (count, length) in enumerate([(1, 1), (2, 1), (9, 5), (16, 40)]):
        if max(latents) < length:
            continue
        plain = drawn_plainly(random.Random(seed), latents, count, length)
        records = bucket.draw(random.Random(seed), count, length)
        assert [record.number for record in records] == plain  # type: ignore[attr-defined]
        if count <= sum(n >= length for n in latents):
            assert len(set(plain)) == count


def test_a_draw_reads_no_clip_but_those_drawn() -> None:
    Clip.reads = 0
    bucket = Bucket([Clip(number, 9) for number in range(2000)])  # type: ignore[arg-type, misc]
    assert Clip.reads == 2000, "once, when the bucket is made"
    for seed in range(20):
        assert len(bucket.draw(random.Random(seed), 16, 5)) == 16
    assert Clip.reads == 2000
