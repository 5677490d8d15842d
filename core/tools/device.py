"""Which device and number type a run uses."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch


def pick_device() -> torch.device:
    """Return the best device of this machine: CUDA, Apple's, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def is_main_process() -> bool:
    """Whether this is the process of a run that speaks to the user: rank 0, or the only one."""
    return int(os.environ.get("RANK", "0")) == 0


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Say whether `precision` (fp32, bf16, auto) means bf16 autocast on `device`."""
    if precision == "auto" and device.type == "cpu":
        # without such instructions a product in bf16 takes 9 times as long as one in fp32
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return the autocast context of a precision: bf16 or nothing."""
    if not uses_bf16(precision, device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


# ⟦core/train/run.py⟧ The folder of a run: its spec, and whether it may be begun or gone on with.


PACKAGES = ("longtake", "torch", "diffusers", "accelerate", "peft", "transformers")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide results."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
