"""What a call costs on a device: seconds, memory, operations; and what the device can reach."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

MIB = 2**20


def time_calls(
    run: Callable[[], object], device: torch.device, repeats: int, *, warm: int = 3
) -> dict[str, float]:
    """Return the median, least and greatest seconds of `run`, after `warm` untimed runs.

    Beside them, but on a GPU, the median of the seconds that all threads spent, `cpu_seconds`: what
    other work on the machine lengthens less.
    """
    for _ in range(warm):
        run()
    if device.type == "cuda":
        return _spread([_cuda_seconds(run) for _ in range(repeats)])
    both = [_cpu_seconds(run) for _ in range(repeats)]
    spent = statistics.median(cpu for _, cpu in both)
    return {**_spread([wall for wall, _ in both]), "cpu_seconds": spent}


def _spread(times: Sequence[float]) -> dict[str, float]:
    return {"seconds": statistics.median(times), "least": min(times), "greatest": max(times)}


def _cpu_seconds(run: Callable[[], object]) -> tuple[float, float]:
    began = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - began[0], time.process_time() - began[1]


def _cuda_seconds(run: Callable[[], object]) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1e3


def peak_mib(run: Callable[[], object], device: torch.device) -> float | None:
    """Return the greatest memory that `run` allocates beside what is there; None without CUDA."""
    if device.type != "cuda":
        run()
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def count_flop(run: Callable[[], object]) -> int:
    """Return the floating-point operations of a call: products, convolutions and attention.

    torch's own counter does not know the attention of CPUs and oneDNN's convolution by its name,
    and takes them for nothing.
    """

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(grad, query, key, value))

    def convolution(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
        return int(conv_flop_count(x, weight, out_shape))

    name = "_scaled_dot_product_flash_attention_for_cpu"
    unknown = {
        torch.ops.aten.mkldnn_convolution: convolution,
        getattr(torch.ops.aten, name): forward,
        getattr(torch.ops.aten, f"{name}_backward"): backward,
    }
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        run()
    return int(counter.get_total_flops())


def device_limits(
    device: torch.device, dtype: torch.dtype, *, side: int, floats: int, repeats: int
) -> dict[str, Any]:
    """Return what a device reaches: FLOP/s of a large product, bytes/s of a large copy.

    Values are random: products of zeros can run faster. On a CPU `cpu` holds the same for each
    second that a thread spends.

    Args:
        device: to measure.
        dtype: of the product.
        side: of its matrices.
        floats: float32 numbers that are copied.
        repeats: timed runs of each.
    """
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    source, target = torch.randn(2, floats, device=device)
    product = time_calls(lambda: a @ b, device, repeats)
    copy = time_calls(lambda: target.copy_(source), device, repeats)

    def rates(key: str) -> dict[str, float]:
        return {
            "flop_per_second": 2 * side**3 / product[key],
            "copy_bytes_per_second": 2 * source.nbytes / copy[key],
        }

    return {
        "dtype": str(dtype).removeprefix("torch."),
        **rates("seconds"),
        **({"cpu": rates("cpu_seconds")} if "cpu_seconds" in product else {}),
        "product": product,
        "copy": copy,
    }


def times_floor(
    times: Mapping[str, float], flop: float, moved: float, limits: Mapping[str, Any]
) -> float:
    """Return how many times its floor a call took, in seconds of threads where they are known.

    Args:
        times: as `time_calls` gives them.
        flop: floating-point operations.
        moved: bytes that must be read or written.
        limits: as `device_limits` measured them.
    """
    if "cpu_seconds" in times and "cpu" in limits:
        return times["cpu_seconds"] / floor_seconds(flop, moved, limits["cpu"])
    return times["seconds"] / floor_seconds(flop, moved, limits)


def floor_seconds(flop: float, moved: float, limits: Mapping[str, Any]) -> float:
    """Return the least seconds that a device's limits allow.

    Args:
        flop: floating-point operations.
        moved: bytes that must be read or written.
        limits: as `device_limits` measured them.
    """
    products = flop / float(limits["flop_per_second"])
    return max(products, moved / float(limits["copy_bytes_per_second"]))
