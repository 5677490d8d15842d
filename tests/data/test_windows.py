"""Windows: a pure function of the step, however its batch is dealt out."""

from __future__ import annotations

import torch

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
