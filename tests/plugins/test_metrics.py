from __future__ import annotations

import math

import pytest
import torch

from longtake.core.contract.metric import check_metric
from longtake.core.errors import UserError
from longtake.plugins.metrics.psnr import PsnrMetric
from longtake.plugins.metrics.ssim import SsimMetric
from longtake.plugins.specs import Psnr, Ssim


@pytest.mark.parametrize("metric", [PsnrMetric(Psnr()), SsimMetric(Ssim())])
def test_keeps_the_contract(metric: PsnrMetric | SsimMetric) -> None:
    check_metric(metric)


def test_contract_catches_a_metric_without_a_ceiling() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        check_metric(PsnrMetric(Psnr(ceiling=math.inf)))


def test_contract_catches_a_metric_that_says_higher_wrongly() -> None:
    class Upside(SsimMetric):
        higher = False

    with pytest.raises(AssertionError, match="not better"):
        check_metric(Upside(Ssim()))


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


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(UserError, match="11x11"):
        SsimMetric(Ssim())(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


def test_one_frame_gives_one_value() -> None:
    frame = torch.rand(1, 3, 16, 16)
    for metric in (PsnrMetric(Psnr()), SsimMetric(Ssim())):
        assert metric(frame, frame).shape == (1,)
