"""Metrics keep the contract, agree with their formulas, and count frames as they should."""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.image import structural_similarity_index_measure

from longtake.core.contract.metric import check_metric
from longtake.core.interfaces.metric import merit
from longtake.core.registry import build
from longtake.plugins.metrics import lpips
from longtake.plugins.metrics.lpips import LpipsMetric
from longtake.plugins.metrics.pixels import (
    BETAS,
    HighBandMetric,
    MsSsimMetric,
    PsnrMetric,
    SsimMetric,
    high_band,
)
from longtake.plugins.metrics.specs import HighBand, Lpips, MsSsim, Psnr, Ssim

SPECS = [
    Psnr(),
    Ssim(),
    *(MsSsim(scales=n) for n in (1, 2, 3, 4, 5)),
    HighBand(),
    HighBand(factor=5),
]


def pooled(metric, reference, result):
    """The figure of several frames: what `measure` makes of values and weights."""
    weight = metric.weight(reference)
    return float((metric(reference, result) * weight).sum() / weight.sum())


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_keeps_the_contract(spec) -> None:
    check_metric(build(spec))


def test_contract_catches_a_metric_without_a_ceiling() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        check_metric(PsnrMetric(Psnr(ceiling=math.inf)))


@pytest.mark.parametrize("goal", ["lower", 0.3, 0.9])
def test_contract_catches_a_metric_whose_goal_is_wrong(goal) -> None:
    class Upside(SsimMetric):
        pass

    Upside.goal = goal
    with pytest.raises(AssertionError, match="not better|its goal"):
        check_metric(Upside(Ssim()))


def test_contract_catches_frames_that_do_not_count() -> None:
    class Weightless(SsimMetric):
        def weight(self, reference):
            return torch.zeros(len(reference))

    with pytest.raises(AssertionError, match="weight of a frame"):
        check_metric(Weightless(Ssim()))


def test_contract_catches_a_metric_that_cannot_run() -> None:
    class Wanting(SsimMetric):
        def missing(self):
            return "a crystal ball"

    with pytest.raises(AssertionError, match="a crystal ball"):
        check_metric(Wanting(Ssim()))


def test_merit_is_more_where_it_is_better() -> None:
    assert merit("higher", 3.0) == 3.0 and merit("lower", 3.0) == -3.0
    assert merit(1.0, 1.0) > merit(1.0, 1.1) > merit(1.0, 0.8) == merit(1.0, 1.2)
    assert merit(1.0, torch.tensor([1.5, 0.5])).tolist() == [-0.5, -0.5]


def test_psnr_is_its_formula_frame_by_frame() -> None:
    reference = torch.rand(3, 3, 8, 12)
    result = reference + torch.tensor([0.1, 0.01, 0.0])[:, None, None, None]
    found = PsnrMetric(Psnr())(reference, result)
    assert found.tolist() == pytest.approx([20.0, 40.0, 60.0], abs=1e-2)
    assert PsnrMetric(Psnr(ceiling=30.0))(reference, result).tolist() == pytest.approx(
        [20.0, 30.0, 30.0], abs=1e-3
    )


def test_ssim_agrees_with_scikit_image_over_the_whole_frame(generator: torch.Generator) -> None:
    """scikit-image's own figure leaves the edges out, so its map is averaged here."""
    from skimage.metrics import structural_similarity

    reference = torch.rand(2, 3, 40, 48, generator=generator)
    noise = torch.randn(2, 3, 40, 48, generator=generator)
    result = (reference + 0.2 * noise).clamp(0, 1)
    found = SsimMetric(Ssim())(reference, result)
    for frame in range(2):
        _, similar = structural_similarity(
            reference[frame].numpy(), result[frame].numpy(), channel_axis=0, data_range=1.0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True,
        )  # fmt: skip
        assert float(found[frame]) == pytest.approx(float(similar.mean()), abs=1e-3)


def test_ms_ssim_is_its_formula_with_weights_that_sum_to_one(generator: torch.Generator) -> None:
    reference = torch.rand(2, 3, 40, 48, generator=generator)
    noise = torch.randn(2, 3, 40, 48, generator=generator)
    result = (reference + 0.1 * noise).clamp(0, 1)

    def both(a, b):
        return structural_similarity_index_measure(
            a, b, data_range=1.0, reduction="none", return_contrast_sensitivity=True
        )

    fine, coarse = both(result, reference), both(*(map(shrink, (result, reference))))
    first, second = (beta / sum(BETAS[:2]) for beta in BETAS[:2])
    expected = fine[1] ** first * coarse[0] ** second
    assert MsSsimMetric(MsSsim(scales=2))(reference, result).tolist() == pytest.approx(
        expected.tolist(), abs=1e-5
    )
    one = MsSsimMetric(MsSsim(scales=1))(reference, result)
    assert one.tolist() == pytest.approx(SsimMetric(Ssim())(reference, result).tolist(), abs=1e-5)


def shrink(frames):
    return torch.nn.functional.avg_pool2d(frames, 2)


@pytest.mark.parametrize("scales", [1, 2, 3, 4, 5])
def test_ms_ssim_says_its_scales_and_works_from_its_least_size_on(scales) -> None:
    metric = MsSsimMetric(MsSsim(scales=scales))
    assert f"{scales} scale" in metric.title
    frame = torch.rand(1, 3, metric.least, metric.least)
    assert metric(frame, frame).tolist() == pytest.approx([1.0])
    assert metric(frame, 1 - frame).isfinite().all()
    assert metric.least <= 128 or scales == 5  # what the default frames have


@settings(deadline=None, max_examples=15)
@given(st.integers(9, 40), st.integers(9, 40), st.sampled_from([2, 4, 7]), st.floats(0.0, 2.0))
def test_contrast_times_a_is_energy_times_its_square_at_any_size(rows, columns, factor, a) -> None:
    reference = torch.rand(2, 3, rows, columns, generator=torch.Generator().manual_seed(rows))
    assert high_band(reference, factor).shape == reference.shape
    found = HighBandMetric(HighBand(factor=factor))(reference, a * reference)
    assert found.tolist() == pytest.approx([a**2] * 2, abs=1e-3)


def test_what_low_resolution_holds_has_next_to_no_high_band() -> None:
    original = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    small = torch.nn.functional.avg_pool2d(original, 4)
    large = torch.nn.functional.interpolate(small, scale_factor=4, mode="bilinear")
    metric = HighBandMetric(HighBand(factor=4))
    assert metric(original, original).tolist() == [1.0, 1.0]
    assert max(metric(original, large).tolist()) < 0.03
    ramp = torch.linspace(0, 1, 96).expand(1, 3, 64, 96)
    assert float(high_band(ramp, 4)[..., 8:-8].abs().max()) < 1e-5  # a slope is no detail
    half = large + (original - large) / 2
    assert metric(original, half).tolist() == pytest.approx([0.25] * 2, abs=0.03)


def test_flat_frames_do_not_drown_the_rest() -> None:
    """A speck on a flat frame is an endless ratio; over the clip it counts for its energy."""
    busy = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    flat = torch.full((1, 3, 32, 32), 0.5)
    speck = flat.clone()
    speck[..., 5, 5] += 0.05
    metric = HighBandMetric(HighBand())
    assert float(metric(flat, flat)) == 1.0 and float(metric(flat, speck)) > 1.9
    reference, result = torch.cat([busy, flat]), torch.cat([busy, speck])
    assert float(metric(reference, result).mean()) > 1.2
    assert pooled(metric, reference, result) == pytest.approx(1.0, abs=1e-3)
    energies = [high_band(x, 4).square().sum() for x in (result, reference)]
    assert pooled(metric, reference, result) == pytest.approx(
        float(energies[0] / energies[1]), abs=1e-4
    )


def test_lpips_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = LpipsMetric(Lpips())
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchvision" else real(name)
    )
    assert "torchvision" in metric.missing() and "not installed" in metric.missing()

    def fails(name, device):
        raise OSError("no route to host\nsecond line")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(lpips, "network", fails)
    assert metric.missing().endswith("no route to host")


def test_lpips_gives_what_its_network_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    def network(name, device):
        assert (name, str(device)) == ("vgg", "cpu")

        def distance(result, reference, *, normalize):
            assert normalize  # values are in [0, 1]
            return (result - reference).abs().mean(dim=(1, 2, 3), keepdim=True)

        return distance

    monkeypatch.setattr(lpips, "network", network)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    check_metric(LpipsMetric(Lpips(net="vgg")))


def test_one_frame_gives_one_value() -> None:
    frame = torch.rand(1, 3, 44, 44)
    for spec in (Psnr(), Ssim(), MsSsim(), HighBand()):
        assert build(spec)(frame, frame).shape == (1,)
