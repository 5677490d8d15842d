"""Loading a diffusers VAE that `weights` found."""

from __future__ import annotations

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...core.errors import UserError
from ..weights.hub import first_line
from .weights import Source

BAD = (OSError, RuntimeError, ValueError, KeyError, IndexError, TypeError, SafetensorError)


def load(source: Source, cls: type[Any], dtype: torch.dtype) -> Any:
    """Give the model, ready to run, on the CPU; nothing of it trains.

    Raises:
        UserError: a file is damaged, lacks tensors, or has others than its config says.
    """
    read = _read_folder if source.path.is_dir() else _read_file
    try:
        with torch.random.fork_rng(devices=[]):
            model, missing = read(source, cls, dtype)
    except BAD as error:
        raise UserError(f"weights {source.path} cannot be read: {first_line(error)}") from error
    if missing:
        count, one = len(missing), min(missing)
        raise UserError(f"weights {source.path} lack {count} tensors, such as {one}")
    return model.eval().requires_grad_(False)


def _read_folder(source: Source, cls: type[Any], dtype: torch.dtype) -> tuple[Any, list[str]]:
    model, info = cls.from_pretrained(
        str(source.path),
        torch_dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    return model, list(info["missing_keys"])


def _read_file(source: Source, cls: type[Any], dtype: torch.dtype) -> tuple[Any, list[str]]:
    """Read one file, in diffusers' layout or in Wan's own, which diffusers' converter reads."""
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    with torch.device("meta"):
        model = cls(**source.config)
    wanted, tensors = model.state_dict().keys(), load_file(source.path)
    if not wanted <= tensors.keys():
        tensors = convert_wan_vae_to_diffusers(tensors)
    missing = [name for name in wanted if name not in tensors]
    if not missing:
        found = {name: tensors[name].to(dtype) for name in wanted}
        model.load_state_dict(found, strict=True, assign=True)
    return model, missing
