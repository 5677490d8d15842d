"""Which device and number type a run uses, and which versions decide its results."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

CPU_FLAGS = Path("/proc/cpuinfo")  # of Linux, the only system that names them without a library
MEMORY = Path("/proc/meminfo")
MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
PACKAGES = ("longtake", "torch", "diffusers", "accelerate", "peft", "transformers")


def pick_device() -> torch.device:
    """Return the best device of this machine: CUDA, Apple's, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def free_memory() -> int | None:
    """Return the bytes of memory that are free, swap included; None where the system does not say.

    No more than this process may have (a container's limit).
    """
    try:
        rows = (line.split() for line in MEMORY.read_text(encoding="ascii").splitlines())
        sizes = {row[0]: int(row[1]) for row in rows if len(row) > 1}
        free = 1024 * (sizes["MemAvailable:"] + sizes["SwapFree:"])
    except (OSError, ValueError, KeyError):
        return None
    try:
        return min(free, int(MEMORY_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # none is set
        return free


def is_main_process() -> bool:
    """Return whether this process speaks to the user: rank 0 of a launcher, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return the autocast context of a precision (fp32, bf16, auto): bf16, or one that is empty."""
    if not uses_bf16(precision, device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Return whether a precision (fp32, bf16, auto) means bf16 autocast on a device.

    `auto` is bf16 on CUDA and on CPUs with AMX, fp32 everywhere else.
    """
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cuda" or (device.type == "cpu" and cpu_multiplies_bf16())


@functools.cache
def cpu_multiplies_bf16() -> bool:
    """Return whether this CPU has AMX for bf16, as Linux lists it; False on other systems.

    AVX-512's bf16 does not count: autocast is slower with it than fp32 is, and without any of them
    a product takes nine times as long.
    """
    try:
        return "amx_bf16" in CPU_FLAGS.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False


@contextlib.contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take numbers too small for float32's full precision (below 1e-38) for zero, while inside.

    GPUs do so in attention anyway; a CPU takes up to a hundred cycles for each. The weights of
    sharp attention are full of them: without this its backward pass takes ten times as long.
    Threads that torch has started before keep them.
    """
    before = not bool(torch.full((1,), 1e-40) * 1)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    numbers = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            numbers[package] = version(package)
        except PackageNotFoundError:
            numbers[package] = "not installed"
    return numbers
