"""What a result was measured on: device, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ...core.device import pick_device

ROOT = Path(__file__).resolve().parents[2]  # of the package, and of its repository
PACKAGES = ("longtake", "torch", "triton", "diffusers", "accelerate")


def facts() -> dict[str, Any]:
    """Give device, driver, versions and commit; what cannot be known is null."""
    return {
        **device_facts(pick_device()),
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def device_facts(device: torch.device) -> dict[str, Any]:
    """Give name, memory and driver of the device."""
    if device.type != "cuda":
        name = platform.processor() or platform.machine()
        return {"device": device.type, "name": name, "memory_mib": None, "driver": None}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": device.type,
        "name": properties.name,
        "memory_mib": properties.total_memory // 2**20,
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def version_of(package: str) -> str | None:
    """Give the version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> dict[str, Any]:
    """Give the commit of the checkout that the package lies in, and whether it was changed."""
    top = said("git", "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return {"commit": None, "dirty": None}
    changed = said("git", "status", "--porcelain")
    return {"commit": said("git", "rev-parse", "HEAD"), "dirty": bool(changed)}


def said(*command: str) -> str | None:
    """Give what a program prints, or None where it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
