"""What a call costs: time, memory, operations; and what is left behind when it does not fit."""

from __future__ import annotations

import gc
import re
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
from ...core.tools.timing import MIB, peak_mib, time_calls
from .subjects import random_backbone

UNITS = {"bytes": 1 / MIB, "KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
FAULT_KEY = "fault"


def held_mib(device: torch.device) -> float | None:
    """Return the memory that tensors hold now; None without CUDA."""
    return torch.cuda.memory_allocated() / MIB if device.type == "cuda" else None


def limits(device: torch.device, *, tiny: bool) -> dict[str, Any]:
    """Return what the device reaches: FLOP/s of a large bf16 product, bytes/s of a large copy.

    Values are random: products of zeros can run faster.
    """
    side, floats = (128, 2**14) if tiny else (8192, 2**28)
    a, b = torch.randn(2, side, side, device=device).bfloat16()
    source, target = torch.randn(2, floats, device=device)
    repeats = 3 if tiny else 20
    product = time_calls(lambda: a @ b, device, repeats)
    copy = time_calls(lambda: target.copy_(source), device, repeats)
    return {
        "bf16_flop_per_second": 2 * side**3 / product["seconds"],
        "copy_bytes_per_second": 2 * source.nbytes / copy["seconds"],
        "product": product,
        "copy": copy,
    }


@frozen(kw_only=True)
class CostMeter:
    """Measures what a call costs on a device.

    Attributes:
        device: that calls run on.
        repeats: timed runs of each call.
        limits: what the device reaches, as the function `limits` measured it; None: not known.
    """

    device: torch.device
    repeats: int
    limits: Mapping[str, Any] | None = None

    def cost(self, run: Callable[[], object]) -> dict[str, Any]:
        """Return seconds, operations, their share of the device's bf16 limit, and memory of a call.

        Its first run warms up: there operations are counted, and a tensor that it returns is
        checked. Memory is what is held between runs and the most that a run adds; None without
        CUDA.

        Raises:
            LongtakeError: the call gives numbers that are not finite.
        """
        with FlopCounterMode(display=False) as counter:
            result = run()
        if isinstance(result, Tensor) and not bool(result.isfinite().all()):
            raise LongtakeError("its numbers are not finite")
        del result
        flops, kinds = counter.get_total_flops(), counter.get_flop_counts().get("Global", {})
        held, times = held_mib(self.device), dict[str, float]()
        peak = peak_mib(
            lambda: times.update(time_calls(run, self.device, self.repeats, warm=0)), self.device
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


@define
class BackboneSlot:
    """Holds one random backbone at a time, since two may not fit.

    Attributes:
        device: of the backbone.
        spec, lora: that it was built from; None: there is none.
        model: the backbone; None: there is none.
    """

    device: torch.device
    spec: DiTSpec | None = None
    lora: LoRA | None = None
    model: Backbone | None = None

    def load(self, spec: DiTSpec, lora: LoRA | None = None) -> Backbone:
        """Return the backbone of a spec, with such adapters; another one is freed first."""
        if self.model is None or (self.spec, self.lora) != (spec, lora):
            self.clear()
            model = random_backbone(spec, self.device)
            if lora is not None:
                model.add_lora(lora)
            self.spec, self.lora, self.model = spec, lora, model
        return self.model

    def clear(self) -> None:
        """Free the backbone."""
        self.spec = self.lora = self.model = None
        release()


def release() -> None:
    """Release memory that no one holds to the GPU, if there is one."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def measure_or_fault(make: Callable[[], dict[str, Any]], slot: BackboneSlot) -> dict[str, Any]:
    """Return the figures that `make` measures, or what it asked for when memory ran out.

    What it leaves is freed. The slot is emptied if it did not end well: its model may have
    gradients, or be half-changed.
    """
    try:
        return make()
    except torch.OutOfMemoryError as error:
        message = str(error).splitlines()[0]
    except Exception:
        slot.clear()
        raise
    finally:
        release()
    slot.clear()  # only here: while it is handled, an exception holds the tensors of its frames
    return {FAULT_KEY: "out of memory", "asked_mib": asked_mib(message), "said": message}


def asked_mib(message: str) -> float | None:
    """Return the memory that an allocator's message says it was asked for; None: it says none."""
    match = re.search(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", message)
    return float(match[1]) * UNITS[match[2]] if match else None
