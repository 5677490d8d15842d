"""Which of its two ways an operation takes: plain torch (the reference) or Triton; said once.

`auto` takes Triton where it can run and was tried on the spot, else the reference; it never fails.
A forced `triton` that cannot run is a `KernelError`. What one call of an operation brings that its
kernel does not take (a shape, a number type, strides) goes to the reference under either.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from attrs import frozen
from torch import Tensor

KERNELS = ("auto", "reference", "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # that the kernels take
OLDEST = 80  # compute capability: before it there is no bfloat16 and no cp.async
TRITON = (3, 6)  # the oldest that the kernels were tried with

LEAST_ERROR = 2e-2  # relative, of a trial: more is no rounding

Fault = Callable[[torch.device, torch.dtype], str]  # tries a kernel; what went wrong, or ""
Trial = Callable[[], Tensor]

log = logging.getLogger(__name__)
_chosen: dict[tuple[str, str, torch.device, torch.dtype], Choice] = {}
_said: set[str] = set()


class KernelError(RuntimeError):
    """Triton was asked for where it cannot run: one line, with what would be right."""


@frozen
class Choice:
    """How an operation runs, and why.

    Attributes:
        triton: whether by Triton, else by the reference.
        why: in words.
    """

    triton: bool
    why: str


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def choose(
    operation: str,
    kernels: str,
    device: torch.device,
    dtype: torch.dtype,
    fault: Fault,
) -> Choice:
    """Return how an operation runs on a device; decided once for each, and said then.

    Args:
        operation: its name.
        kernels: auto, reference or triton.
        device: of its tensors.
        dtype: of its tensors, as autocast will have them.
        fault: tries the kernel.

    Raises:
        KernelError: triton was asked for and cannot run.
        ValueError: `kernels` is none of the three.
    """
    key = (operation, kernels, device, dtype)
    if key not in _chosen:
        _chosen[key] = _choice(operation, kernels, device, dtype, fault)
    return _chosen[key]


def trial_fault(device: torch.device, found: Trial, wanted: Trial) -> str:
    """Return what is wrong with what a kernel makes, in one line; "" where nothing is.

    Args:
        device: whose autocast is left off meanwhile.
        found: runs the kernel.
        wanted: runs its meaning, in float32.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            made, right = found(), wanted()
        except Exception as error:  # whatever a compiler, a driver or triton raises
            return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    off = float((made.view_as(right).float() - right).norm() / right.norm())
    return "" if off < LEAST_ERROR else f"relative error {off:.1e}"


def _choice(
    operation: str,
    kernels: str,
    device: torch.device,
    dtype: torch.dtype,
    fault: Fault,
) -> Choice:
    if kernels not in KERNELS:
        raise ValueError(f"kernels is one of {', '.join(KERNELS)}, not {kernels!r}")
    if kernels == "reference":
        return Choice(False, "kernels=reference")
    why = cannot_run(device)
    if not why and kernels == "auto" and dtype not in (torch.float16, torch.bfloat16):
        why = f"{_plain(dtype)} is left to torch"
    if not why and kernels == "auto" and interpreting():
        why = "the interpreter is for tests"
    if not why and (wrong := fault(device, dtype)):
        why = f"a trial on {_name(device)} in {_plain(dtype)} went wrong: {wrong}"
    if why and kernels == "triton":
        raise _refused(operation, why)
    choice = Choice(not why, why or f"{_name(device)}, {_plain(dtype)}")
    way = "triton" if choice.triton else "reference"
    # on a CPU nobody waits for kernels
    level = logging.INFO if device.type == "cpu" else logging.WARNING
    say_once(f"kernels: {operation} runs by {way} ({choice.why})", level)
    return choice


def refuse_device(operation: str, kernels: str, device: torch.device) -> None:
    """Raise KernelError if triton was asked for and cannot run on a device; tries nothing."""
    if kernels == "triton" and (why := cannot_run(device)):
        raise _refused(operation, why)


def _refused(operation: str, why: str) -> KernelError:
    return KernelError(
        f"kernels=triton cannot run {operation}: {why}; kernels=auto takes torch there"
    )


def cannot_run(device: torch.device) -> str:
    """Return why Triton kernels cannot run on a device, in words; "" where they can."""
    if interpreting() and device.type == "cpu":
        return _no_triton()
    if device.type != "cuda":
        return f"the device is {device.type}, kernels are for NVIDIA GPUs"
    if torch.version.hip is not None:
        return "kernels were never tried on ROCm"
    if sys.platform != "linux":
        return f"triton is for Linux, this is {sys.platform}"
    major, minor = torch.cuda.get_device_capability(device)
    if 10 * major + minor < OLDEST:
        return f"{_name(device)} is sm_{major}{minor}, kernels need sm_{OLDEST} or newer"
    return _no_triton()


def _no_triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install triton)"
    try:
        found = version("triton")
    except PackageNotFoundError:  # such as a build of its own
        return ""
    parts = tuple(int(x) for x in found.split("+")[0].split(".")[:2] if x.isdigit())
    if parts < TRITON:
        return f"triton is {found}, kernels need {'.'.join(map(str, TRITON))} or newer"
    return ""


def interpreting() -> bool:
    """Return whether triton runs its kernels in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def arch_of(device: torch.device) -> int:
    """Return the compute capability of a CUDA device, such as 89; 0 for any other device."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def autocasts(x: Tensor) -> bool:
    """Return whether autocast is on for an operation on `x`; it leaves float64 alone."""
    kind = x.device.type
    has = torch.amp.is_autocast_available(kind)  # tensors without numbers have none
    return x.dtype != torch.float64 and has and torch.is_autocast_enabled(kind)


def call_dtype(x: Tensor) -> torch.dtype:
    """Return the number type that an operation on `x` runs in: autocast's, else that of `x`."""
    return torch.get_autocast_dtype(x.device.type) if autocasts(x) else x.dtype


def say_once(text: str, level: int = logging.WARNING) -> None:
    """Say something that would come again with every call."""
    if text not in _said:
        _said.add(text)
        log.log(level, "%s", text)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
