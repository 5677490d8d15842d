"""Frozen models of others in compressors: where they are, and the projection into a DiT's space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...core.errors import UserError
from ...core.interfaces.compressor import Fit
from ...core.tools.files import read_object
from ...core.tools.hub import locate

PATTERNS = (
    "config.json", "preprocessor_config.json", "model*.safetensors*",
    "diffusion_pytorch_model*.safetensors*",
)  # fmt: skip


def model_folder(name: str, weights: str | None, subfolder: str, example: str) -> Path:
    """Return the folder of a frozen model, on disk or in the hub's cache, after a download.

    Only config and safetensors files are downloaded, each once.

    Args:
        name: of the compressor, for messages.
        weights: a folder, or a hub id as org/name.
        subfolder: where in it; empty: at its top.
        example: what `weights` could be.

    Raises:
        UserError: `weights` is None, nothing is there, or the download fails.
    """
    if weights is None:
        raise UserError(f"{name} needs weights: name a folder or hub id, such as {example}")
    inside = f"{subfolder}/" if subfolder else ""
    folder = locate(
        weights,
        [inside + pattern for pattern in PATTERNS],
        expected=f"a folder or hub id, such as {example}",
        label=f"{name}: weights",
    )
    if not (folder / subfolder / "config.json").is_file():
        raise UserError(f"{name}: weights {folder / subfolder} hold no config.json: no such model")
    return folder / subfolder


def read_config(name: str, folder: Path, *keys: str) -> dict[str, Any]:
    """Return the config of a frozen model, with all of `keys`.

    Raises:
        UserError: it is missing, damaged, or lacks a key.
    """
    return read_object(folder / "config.json", f"model for {name}", *keys)


def number_type(spec_dtype: str, weight: torch.Tensor) -> torch.dtype:
    """Return the number type a frozen model runs in: the spec's, or float64 as its projection.

    Checks run in float64.
    """
    dtype: torch.dtype = getattr(torch, spec_dtype)
    return torch.float64 if weight.dtype == torch.float64 else dtype


def projection(inputs: int, fit: Fit) -> torch.nn.Linear:
    """Return a fresh projection whose tokens are as large as the DiT's own, for unit inputs."""
    # The DiT's tokens of latents of unit variance, weight and bias, by their mean square.
    squares = fit.patch_weight.detach().float().flatten(1).square().sum(dim=1)
    size = float((squares + fit.patch_bias.detach().float().square()).mean().sqrt())
    linear = torch.nn.Linear(inputs, fit.geometry.width)
    torch.nn.init.normal_(linear.weight, std=size * inputs**-0.5)
    torch.nn.init.zeros_(linear.bias)
    return linear
