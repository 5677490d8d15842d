from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.core.values import flow


def test_ends_of_the_path_and_its_velocity() -> None:
    x0, noise = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert torch.equal(flow.interpolate(x0, noise, 0.0), x0)
    assert torch.equal(flow.interpolate(x0, noise, 1.0), noise)
    slope = (flow.interpolate(x0, noise, 0.75) - flow.interpolate(x0, noise, 0.25)) / 0.5
    assert torch.allclose(slope, flow.velocity_target(x0, noise), atol=1e-5)


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_clean_values_come_back(t: float) -> None:
    x0, noise = torch.randn(7).double(), torch.randn(7).double()
    noisy = flow.interpolate(x0, noise, t)
    found = flow.clean_from(noisy, flow.velocity_target(x0, noise), t)
    assert torch.allclose(found, x0, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(st.floats(0.1, 12), st.floats(0, 1), st.floats(0, 1))
def test_shift_keeps_order_and_ends_and_is_undone_by_its_inverse(
    shift: float, a: float, b: float
) -> None:
    assert flow.shift_time(0.0, shift) == 0.0
    assert flow.shift_time(1.0, shift) == pytest.approx(1.0)
    low, high = sorted((a, b))
    assert flow.shift_time(low, shift) <= flow.shift_time(high, shift) + 1e-12
    assert flow.shift_time(flow.shift_time(a, shift), 1 / shift) == pytest.approx(a, abs=1e-9)


def test_shift_agrees_with_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2])
    ours = flow.shift_time(torch.tensor([1.0, 0.6, 0.2, 0.0]), 5.0)
    assert torch.allclose(scheduler.sigmas, ours, atol=1e-6)


def test_logit_normal_has_its_quantiles() -> None:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(40_000, generator=generator)
    t = flow.logit_normal(normal, mean=0.5, std=0.8, shift=3.0)
    assert t.dtype == torch.float32
    z = torch.tensor([-1.0, 0.0, 1.0])
    expected = flow.shift_time(torch.sigmoid(0.5 + 0.8 * z), 3.0)
    found = torch.quantile(t, torch.tensor([0.158655, 0.5, 0.841345]))
    assert torch.allclose(found, expected, atol=0.01)


@pytest.mark.parametrize(("mean", "std"), [(-10.0, 10.0), (10.0, 10.0), (0.0, 1.0)])
def test_times_are_in_range_however_far_the_tail(mean: float, std: float) -> None:
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(100_000, generator=generator)
    t = flow.logit_normal(normal, mean=mean, std=std, shift=1.0)
    assert float(t.min()) > 0.0
    assert float(t.max()) <= 1.0


@settings(deadline=None, max_examples=20)
@given(st.floats(0, 1))
def test_levels_start_at_low(low: float) -> None:
    normal = torch.randn(500, generator=torch.Generator().manual_seed(2))
    drawn = flow.levels(low, normal, mean=0.0, std=1.0, shift=1.0)
    assert float(drawn.min()) >= low - 1e-6
    assert float(drawn.max()) <= 1.0 + 1e-6
