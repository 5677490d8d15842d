"""What the step timer times: a real step of each subject, and its products."""

from __future__ import annotations

import math

from longtake.experiments import step

from .small import small


def test_a_step_trains_and_its_products_are_counted():
    take = step._step(small())
    assert step._gflop(take) > 0 and math.isfinite(take())


def test_subjects_begin_with_random_weights_and_need_no_files():
    found = step.subjects()
    assert len(found) == 4
    for name, experiment in found.items():
        backbone = experiment.backbone
        assert backbone.weights is None and name.endswith(f"blocks of {backbone.geometry.width}")
        assert backbone.geometry.channels == int(name.split(", ")[-2].split()[0])
