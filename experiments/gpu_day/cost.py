"""What a call costs: time, memory, operations; and what is left behind when it does not fit."""

from __future__ import annotations

import gc
import re
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from attrs import define, frozen
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ...backbones.specs import DiTSpec
from ...core.errors import LongtakeError
from ...core.interfaces.backbone import Backbone
from ...core.interfaces.spec import LoRA
from .subjects import random_backbone

# ⟦experiments/gpu_steps/timing.py⟧ Times and limits of a device.


MIB = 2**20


def paced(
    run: Callable[[], object], device: torch.device, repeats: int, *, warm: int = 3
) -> dict[str, float]:
    """Return the median, least and greatest seconds of `run`, after `warm` runs that do not count."""
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


def limits(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Return what the device reaches: FLOP/s of a large bf16 product, bytes/s of a large copy.

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
    """Return the least seconds that the device's limits allow; None where they are not known."""
    if found is None:
        return None
    work, traffic = found["bf16_flop_per_second"], found["copy_bytes_per_second"]
    return max(flops / float(work), moved / float(traffic))


UNITS = {"bytes": 1 / MIB, "KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
FAULT = "fault"


@frozen(kw_only=True)
class Bench:
    """Where and how often calls run, and what the device reaches (`timing.limits`), if known."""

    device: torch.device
    repeats: int
    limits: Mapping[str, Any] | None = None

    def cost(self, run: Callable[[], object]) -> dict[str, Any]:
        """Return seconds, operations, their share of the device's bf16 limit, and memory of a call.

        Its first run warms up: operations are counted, and a tensor that it gives is looked at.
        Memory is what is held between runs and the most that a run adds; null without CUDA.

        Raises:
            LongtakeError: the call gives numbers that are not finite.
        """
        with FlopCounterMode(display=False) as counter:
            given = run()
        if isinstance(given, Tensor) and not bool(given.isfinite().all()):
            raise LongtakeError("its numbers are not finite")
        del given
        flops, kinds = counter.get_total_flops(), counter.get_flop_counts().get("Global", {})
        held, times = held_mib(self.device), dict[str, float]()
        peak = peak_mib(
            lambda: times.update(paced(run, self.device, self.repeats, warm=0)), self.device
        )
        return {
            **times,
            "tflop": flops / 1e12,
            "tflop_by_operation": {str(kind): n / 1e12 for kind, n in kinds.items()},
            "share_of_limit": self.share(flops, times["seconds"]),
            "held_mib": held,
            "peak_mib": peak,
        }

    def share(self, flops: int, seconds: float) -> float | None:
        """Return the share of the device's measured bf16 operations a second; None: not known."""
        if self.limits is None:
            return None
        return flops / seconds / float(self.limits["bf16_flop_per_second"])


def held_mib(device: torch.device) -> float | None:
    """Return the memory that tensors hold now; None without CUDA."""
    return torch.cuda.memory_allocated() / MIB if device.type == "cuda" else None


@define
class Shelf:
    """Holds one random backbone at a time, since two may not fit."""

    device: torch.device
    spec: DiTSpec | None = None
    lora: LoRA | None = None
    model: Backbone | None = None

    def take(self, spec: DiTSpec, lora: LoRA | None = None) -> Backbone:
        """Return the backbone of a spec, with such adapters; the one before is let go first."""
        if self.model is None or (self.spec, self.lora) != (spec, lora):
            self.clear()
            made = random_backbone(spec, self.device)
            if lora is not None:
                made.add_lora(lora)
            self.spec, self.lora, self.model = spec, lora, made
        return self.model

    def clear(self) -> None:
        """Let go of it."""
        self.spec = self.lora = self.model = None
        release()


def release() -> None:
    """Give memory that no one holds back to the GPU, if there is one."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def fitting(make: Callable[[], dict[str, Any]], shelf: Shelf) -> dict[str, Any]:
    """Return the figures of a case, or what it asked for when memory ran out.

    What a case leaves is freed. The shelf is emptied if it did not end well: its model may have
    gradients, or be half-changed.
    """
    try:
        return make()
    except torch.OutOfMemoryError as error:
        said = str(error).splitlines()[0]
    except Exception:
        shelf.clear()
        raise
    finally:
        release()
    shelf.clear()  # only here: while it is handled, an exception holds the tensors of its frames
    return {FAULT: "out of memory", "asked_mib": asked_mib(said), "said": said}


def asked_mib(said: str) -> float | None:
    """Return the memory that an allocator says it was asked for; None where it says nothing."""
    found = re.search(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", said)
    return float(found[1]) * UNITS[found[2]] if found else None
