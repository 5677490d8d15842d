"""What safetensors files say of their tensors, checked against a model before any is read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...core.errors import UserError
from .hub import first_line

if TYPE_CHECKING:
    from ..dit.model import DiT

D = TypeVar("D", bound="DiT")


def skeleton(cls: type[D], config: Mapping[str, Any]) -> D:
    """Give a model whose parameters are on the meta device; its buffers are real, as they load."""
    with init_empty_weights(), torch.random.fork_rng(devices=[]):
        model: D = cls(**config)
    return model


def read_headers(name: str, files: Sequence[Path]) -> dict[str, Tensor]:
    """Give the tensors of safetensors files by name, on the meta device: only headers are read.

    Raises:
        UserError: a file is cut short, or none; the message calls the weights `name`.
    """
    found: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    shape = file.get_slice(key).get_shape()
                    found[key] = torch.empty(shape, device="meta")
        except (OSError, SafetensorError) as error:
            said = f"{path.name} is cut short or no safetensors file ({first_line(error)})"
            raise UserError(f"weights {name} cannot be read: {said}") from error
    return found


def check_tensors(name: str, found: Mapping[str, Tensor], model: DiT) -> None:
    """Refuse tensors that are not exactly those of a model.

    Raises:
        UserError: some are missing, have another shape, or belong to no parameter.
    """
    wanted: Mapping[str, Tensor] = model.state_dict()
    missing = [key for key in wanted if key not in found]
    if missing:
        raise UserError(f"weights {name} lack {len(missing)} tensors, such as {min(missing)}")
    for key, tensor in wanted.items():
        if found[key].shape != tensor.shape:
            said = f"{key} is {tuple(found[key].shape)}, not {tuple(tensor.shape)}"
            raise UserError(f"weights {name} cannot be read into this model: {said}")
    free = model._keys_to_ignore_on_load_unexpected or ()
    strange = [k for k in found if k not in wanted and not any(re.search(f, k) for f in free)]
    if strange:
        said = f"{len(strange)} tensors, such as {min(strange)}"
        raise UserError(f"weights {name} hold more than this model has: {said}")
