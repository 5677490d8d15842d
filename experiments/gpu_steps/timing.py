"""Times and limits of a device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

MIB = 2**20


def paced(
    run: Callable[[], object], device: torch.device, repeats: int, *, warm: int = 3
) -> dict[str, float]:
    """Give the median, least and greatest seconds of `run`, after `warm` runs that do not count."""
    for _ in range(warm):
        run()
    measure = _cuda_seconds if device.type == "cuda" else _cpu_seconds
    times = [measure(run) for _ in range(repeats)]
    return {"seconds": statistics.median(times), "least": min(times), "greatest": max(times)}


def _cpu_seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _cuda_seconds(run: Callable[[], object]) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def peak_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """Give the greatest memory that `run` allocates beside what is there; None without CUDA."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def limits(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Give what the device reaches: FLOP/s of a large bf16 product, bytes/s of a large copy.

    Values are random: products of zeros can run faster.
    """
    side, floats = (128, 2**14) if tiny else (8192, 2**28)
    a, b = torch.randn(2, side, side, device=device).bfloat16()
    source, target = torch.randn(2, floats, device=device)
    repeats = 3 if tiny else 20
    product = paced(lambda: a @ b, device, repeats)
    copy = paced(lambda: target.copy_(source), device, repeats)
    return {
        "bf16_flop_per_second": 2 * side**3 / product["seconds"],
        "copy_bytes_per_second": 2 * source.nbytes / copy["seconds"],
        "product": product,
        "copy": copy,
    }


def floor(flops: int, moved: int, found: dict[str, Any] | None) -> float | None:
    """Give the least seconds that the device's limits allow; None where they are not known."""
    if found is None:
        return None
    work, traffic = found["bf16_flop_per_second"], found["copy_bytes_per_second"]
    return max(flops / float(work), moved / float(traffic))
