"""bf16 is chosen where it is faster, and nowhere else."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from longtake.core.tools import device

CPU, GPU, APPLE = map(torch.device, ("cpu", "cuda", "mps"))


@pytest.mark.parametrize(
    "flags,faster",
    [
        ("fpu sse2 avx512f avx512_bf16 amx_tile amx_bf16 amx_int8", True),
        ("fpu sse2 avx512f avx512_bf16", False),  # slower than fp32
        ("fpu sse2 avx512f amx_tile", False),  # AMX without bf16
        ("fpu sse2 avx2", False),
        (None, False),  # no Linux: no list of flags
    ],
)
def test_auto_is_bf16_on_a_cpu_with_amx_alone(
    flags: str | None, faster: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if flags is not None:
        path.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: \n")
    monkeypatch.setattr(device, "CPU_FLAGS", path)
    device.cpu_multiplies_bf16.cache_clear()
    try:
        assert device.uses_bf16("auto", CPU) is faster
        assert isinstance(device.autocast("auto", CPU), torch.autocast if faster else nullcontext)
    finally:
        device.cpu_multiplies_bf16.cache_clear()


def test_a_precision_that_is_named_holds_everywhere() -> None:
    for place in (CPU, GPU, APPLE):
        assert device.uses_bf16("bf16", place) and not device.uses_bf16("fp32", place)
    assert device.uses_bf16("auto", GPU) and not device.uses_bf16("auto", APPLE)
