"""Which way operations take, where, and what is said of it; what `kernels` is no part of."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from attrs import evolve

from longtake.core import config
from longtake.core.contract.samples import sample_fit, sample_history
from longtake.core.errors import UserError
from longtake.core.experiment import Experiment
from longtake.core.train.pretrain import check_run
from longtake.core.values.grid import Rate, Size3
from longtake.kernels import dispatch
from longtake.kernels.conv3d_act import conv3d_act
from longtake.plugins.compressors.conv import ConvCompressor
from longtake.plugins.compressors.conv_layers import FrameAttention, TokenHead
from longtake.plugins.compressors.dual import DualEncoderCompressor
from longtake.plugins.compressors.specs import Conv, DualEncoder
from longtake.plugins.compressors.tokens import LrBranch

from ..small import small

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was chosen or said before, and triton's interpreter is off."""
    monkeypatch.setattr(dispatch, "_chosen", {})
    monkeypatch.setattr(dispatch, "_said", set())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card that torch believes to be there."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    monkeypatch.setattr(sys, "platform", "linux")


def fine(device: torch.device, dtype: torch.dtype) -> str:
    return ""


def choose(kernels: str, device: torch.device = CUDA, dtype: torch.dtype = torch.bfloat16,
           fault: dispatch.Fault = fine) -> dispatch.Choice:  # fmt: skip
    return dispatch.choose("op", kernels, device, dtype, fault)


def test_a_card_takes_triton_and_says_so_once(card: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose("auto").triton and choose("auto").triton and choose("triton").triton
    assert [r.getMessage() for r in caplog.records] == [
        "kernels: op runs by triton (a card, bfloat16)"
    ]
    assert not choose("reference").triton
    assert not choose("auto", dtype=torch.float32).triton
    assert choose("triton", dtype=torch.float32).triton


@pytest.mark.parametrize(
    ("where", "value", "why"),
    [
        ("torch.cuda.get_device_capability", lambda _: (7, 5), "a card is sm_75"),
        ("torch.version.hip", "6.4", "never tried on ROCm"),
        ("sys.platform", "win32", "triton is for Linux, this is win32"),
        ("importlib.util.find_spec", lambda _: None, "triton is not installed"),
        ("longtake.kernels.dispatch.version", lambda _: "3.5.1+git1", "triton is 3.5.1"),
    ],
)
def test_where_triton_cannot_run_the_reference_does(
    card: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    where: str, value: object, why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(where, value)
    assert not choose("auto").triton
    assert why in caplog.text and "runs by reference" in caplog.text
    with pytest.raises(dispatch.KernelError, match=why):
        choose("triton")


def test_a_trial_that_goes_wrong_is_said(card: None, caplog: pytest.LogCaptureFixture) -> None:
    def wrong(device: torch.device, dtype: torch.dtype) -> str:
        return "no C compiler"

    assert not choose("auto", fault=wrong).triton
    assert "a trial on a card in bfloat16 went wrong: no C compiler" in caplog.text
    with pytest.raises(dispatch.KernelError, match="no C compiler; kernels=auto takes torch"):
        choose("triton", fault=wrong)


def test_a_cpu_takes_the_reference_and_warns_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    x, weight, bias = torch.randn(1, 2, 3, 4, 4), torch.randn(3, 2, 3, 3, 3), torch.randn(3)
    for _ in range(2):
        out = conv3d_act(x, weight, bias, stride=(1, 1, 1))
    assert out.shape == (1, 3, 1, 4, 4)
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert "runs by reference (the device is cpu" in record.getMessage()
    with pytest.raises(dispatch.KernelError, match="the device is cpu"):
        conv3d_act(x, weight, bias, stride=(1, 1, 1), kernels="triton")


def test_forced_triton_on_a_cpu_is_one_line_wherever_it_stands() -> None:
    forced = Conv(rate=Rate.parse("2x2x2"), channels=(4,), heads=1, head_width=4, kernels="triton")
    for made in (
        ConvCompressor(forced, sample_fit()),
        DualEncoderCompressor(DualEncoder(encoders=(forced,)), sample_fit()),
    ):
        with pytest.raises(UserError, match=r"^compressor\.kernels=triton cannot run") as error:
            made.check_device(CPU)
        assert "\n" not in str(error.value)
        history = sample_history(Size3(time=3, height=4, width=4), made.needs(made.spec))
        with pytest.raises(UserError, match="the device is cpu"):
            made(history)
    ConvCompressor(evolve(forced, hr=False), sample_fit()).check_device(CPU)  # has no convs


def test_every_block_takes_the_reference_on_a_cpu_and_forced_triton_is_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    geometry, x = sample_fit(dtype=torch.float32), torch.randn(1, 2, 4, 8)
    branch, lr = LrBranch("x", Rate.parse("2x2x2"), geometry), torch.randn(1, 3, 2, 4, 4)
    size = Size3(time=3, height=4, width=4)

    def calls(kernels: str) -> list[Callable[[], object]]:
        layer = FrameAttention(8, 2, 4, kernels)
        head = TokenHead(8, geometry.geometry.width, zero=False, kernels=kernels)
        return [lambda: layer(x, None, 2, None), lambda: head.with_lr(x, branch, lr, size)]

    for call in calls("auto") * 2:
        call()
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" (")[0] for line in said] == [
        "kernels: chunk_attention runs by reference",
        "kernels: out_tokens runs by reference",
    ]
    for call, name in zip(calls("triton"), ("chunk_attention", "out_tokens"), strict=True):
        with pytest.raises(UserError, match=f"^compressor.kernels=triton cannot run {name}: the"):
            call()


def test_autocast_is_asked_of_devices_that_have_it() -> None:
    assert not dispatch.autocasts(torch.empty(1, device="meta"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dispatch.call_dtype(torch.empty(1)) == torch.bfloat16
        assert dispatch.call_dtype(torch.empty(1, device="meta")) == torch.float32


def with_kernels(experiment: Experiment, kernels: str) -> Experiment:
    (spec,) = experiment.compressors
    assert isinstance(spec, Conv)
    return evolve(experiment, compressors=(evolve(spec, kernels=kernels),))


def test_kernels_are_no_part_of_a_runs_identity(tmp_path: Path) -> None:
    one = small()
    other = with_kernels(one, "triton")
    assert one == other and config.identity(one) == config.identity(other)
    assert config.to_json(other)["compressors"][0]["kernels"] == "triton"
    assert config.from_json(config.to_json(other), Experiment).compressors[0].kernels == "triton"
    (tmp_path / "checkpoint-1").mkdir()
    text = config.dumps(other)
    (tmp_path / "spec.json").write_text(f'{{"experiment": {text}}}')
    check_run(one, tmp_path, resume=True)
    with pytest.raises(UserError, match="is a run of another spec"):
        (spec,) = one.compressors
        check_run(evolve(one, compressors=(evolve(spec, window=9),)), tmp_path, resume=True)


def test_a_trial_says_what_is_wrong_with_a_kernel() -> None:
    device, right = torch.device("cpu"), torch.arange(6.0).view(2, 3)

    def broken() -> torch.Tensor:
        raise RuntimeError("no such unit\nand more")

    def tried(kernel: Callable[[], torch.Tensor]) -> str:
        return dispatch.trial_fault(device, kernel, lambda: right)

    assert tried(lambda: right.half().flatten() * 1.01) == ""  # within rounding, another shape
    assert tried(lambda: right * 1.5) == "relative error 5.0e-01"
    assert tried(broken) == "RuntimeError: no such unit"
