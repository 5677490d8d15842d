"""Frozen models of others: their folders, here or on the hub, and what fits them to a DiT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...core.errors import UserError
from ...core.interfaces.compressor import Fit
from ...core.tools.files import read_object

PATTERNS = (
    "config.json", "preprocessor_config.json", "model*.safetensors*",
    "diffusion_pytorch_model*.safetensors*",
)  # fmt: skip


def model_folder(name: str, weights: str | None, subfolder: str, example: str) -> Path:
    """Return the folder of a frozen model: one on disk, or what the hub's cache has of a repository.

    Only config and safetensors files are downloaded, each once.

    Args:
        name: of the compressor, for messages.
        weights: a folder, or a hub id as org/name.
        subfolder: where in it; empty: at its top.
        example: what `weights` could be.

    Raises:
        UserError: there are none, or they cannot be had.
    """
    if weights is None:
        raise UserError(f"{name} needs weights: name a folder or hub id, such as {example}")
    place = Path(weights)
    if not place.is_dir():
        place = _downloaded(name, weights, subfolder)
    if not (place / subfolder / "config.json").is_file():
        raise UserError(f"{name}: weights {place / subfolder} hold no config.json: no such model")
    return place / subfolder


def _downloaded(name: str, weights: str, subfolder: str) -> Path:
    from huggingface_hub import snapshot_download

    if weights.count("/") != 1 or weights.startswith((".", "/")):
        raise UserError(f"{name}: weights {weights}: there is no such folder")
    inside = f"{subfolder}/" if subfolder else ""
    try:
        return Path(snapshot_download(weights, allow_patterns=[inside + p for p in PATTERNS]))
    except Exception as error:  # whatever the network's libraries raise
        raise UserError(
            f"{name}: weights {weights} are no folder here and cannot be downloaded: {line(error)}"
        ) from error


def config_of(name: str, folder: Path, *keys: str) -> dict[str, Any]:
    """Return a model's config, with all of `keys`; UserError where it lacks one."""
    return read_object(folder / "config.json", f"model for {name}", *keys)


def line(error: BaseException) -> str:
    """Return what an error says, on one line."""
    said = " ".join(str(error).split())
    return said if len(said) <= 200 else said[:197] + "..." if said else type(error).__name__


def number_type(spec_dtype: str, weight: torch.Tensor) -> torch.dtype:
    """Return the number type a frozen model runs in: float64 under a float64 projection (checks)."""
    found: torch.dtype = getattr(torch, spec_dtype)
    return torch.float64 if weight.dtype == torch.float64 else found


def token_size(fit: Fit) -> float:
    """Return the root mean square of the DiT's own tokens of latents of unit variance."""
    squares = fit.patch_weight.detach().float().flatten(1).square().sum(dim=1)
    return float((squares + fit.patch_bias.detach().float().square()).mean().sqrt())


def projection(inputs: int, fit: Fit) -> torch.nn.Linear:
    """Return a fresh projection whose tokens are as large as the DiT's own, for unit inputs."""
    made = torch.nn.Linear(inputs, fit.geometry.width)
    torch.nn.init.normal_(made.weight, std=token_size(fit) * inputs**-0.5)
    torch.nn.init.zeros_(made.bias)
    return made
