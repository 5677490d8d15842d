"""Weights held to the model that a spec asks for, before any is read.

Safetensors headers and config.json say enough: names and shapes of tensors, and the numbers of the
architecture. Where these are of another published model, the message names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from torch import Tensor

from ...core.errors import UserError
from ...core.registry import registry
from ...core.tools.files import TensorFile
from ...core.tools.hub import first_line
from ..blocks.base import DiffusersBackbone
from ..specs import DiTSpec
from .find import as_json

D = TypeVar("D", bound=DiffusersBackbone)


def skeleton(cls: type[D], config: Mapping[str, Any]) -> D:
    """Build a model whose parameters are on the meta device; its buffers are real, as they load."""
    with init_empty_weights(), torch.random.fork_rng(devices=[]):
        model: D = cls(**config)
    return model


def read_headers(name: str, files: Sequence[Path]) -> dict[str, Tensor]:
    """Return the tensors of safetensors files by name, on the meta device: only headers are read.

    Their types are float32 and, of whole numbers, int8.

    Raises:
        UserError: a file is cut short or no safetensors file; the message calls the weights `name`.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            file = TensorFile(path)
        except (OSError, SafetensorError) as error:
            reason = f"{path.name} is cut short or no safetensors file ({first_line(error)})"
            raise UserError(f"weights {name} cannot be read: {reason}") from error
        for key, entry in file.entries.items():
            whole = not entry["dtype"].startswith(("F", "BF"))
            dtype = torch.int8 if whole else torch.float32  # of what kind is all that is asked
            tensors[key] = torch.empty(file.shape(key), dtype=dtype, device="meta")
    return tensors


def check_tensors(name: str, tensors: Mapping[str, Tensor], model: DiffusersBackbone) -> None:
    """Refuse tensors that are not exactly those of a model.

    Raises:
        UserError: some are missing, have another shape, belong to no parameter, or hold whole
            numbers, of which nothing says what they stand for.
    """
    expected: Mapping[str, Tensor] = model.state_dict()
    missing = [key for key in expected if key not in tensors]
    if missing:
        raise UserError(f"weights {name} lack {len(missing)} tensors, such as {min(missing)}")
    for key, tensor in expected.items():
        if tensors[key].shape != tensor.shape:
            reason = f"{key} is {tuple(tensors[key].shape)}, not {tuple(tensor.shape)}"
            raise UserError(f"weights {name} cannot be read into this model: {reason}")
    free = model._keys_to_ignore_on_load_unexpected or ()
    strange = [k for k in tensors if k not in expected and not any(re.search(f, k) for f in free)]
    if strange:
        what = f"{len(strange)} tensors, such as {min(strange)}"
        raise UserError(f"weights {name} hold more than this model has: {what}")
    floats = [key for key, x in expected.items() if x.is_floating_point()]
    whole = [key for key in floats if not tensors[key].is_floating_point()]
    if whole:
        raise UserError(
            f"weights {name} are quantised in a way that is not read ({whole[0]} holds whole "
            "numbers): take the bf16 or fp16 file, or a GGUF"
        )


def check_finite(name: str, model: DiffusersBackbone) -> None:
    """Refuse weights with values that are not finite: whatever is made with them means nothing.

    Raises:
        UserError: with the first tensor that has any.
    """
    for key, weight in model.named_parameters():
        if weight.is_floating_point() and not bool(weight.sum(dtype=torch.float32).isfinite()):
            raise UserError(
                f"weights {name} are damaged: {key} holds values that are not finite; copy or "
                "download them again"
            )


def check_numbers(name: str, numbers: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse weights whose numbers are not those of `config`; what only one of them says is free.

    Args:
        name: of the weights, for the message.
        numbers: of the weights, by their names in diffusers' config.
        config: the numbers that the spec asks for.

    Raises:
        UserError: with what differs, and the published backbones that the weights look like.
    """
    both = [key for key in config if key in numbers]
    wrong = [key for key in both if as_json(numbers[key]) != as_json(config[key])]
    if wrong:
        lines = ", ".join(f"{k} is {as_json(numbers[k])}, not {as_json(config[k])}" for k in wrong)
        raise UserError(f"weights {name} do not fit the spec: {lines}{_hint(numbers)}")


def _hint(numbers: Mapping[str, Any]) -> str:
    """Return which published model weights of these numbers look like, as the end of a sentence."""
    published = {
        plugin.name: plugin.spec().config
        for plugin in registry().of("backbone")
        if issubclass(plugin.spec, DiTSpec) and plugin.spec.published
    }
    names = [name for name, config in published.items() if _is_alike(numbers, config)]
    if names:
        return f"; they look like {' or '.join(names)}"
    ends = numbers.get("in_channels"), numbers.get("out_channels")
    if numbers.get("image_dim") or (None not in ends and ends[0] != ends[1]):
        return "; they look like an image-to-video model, and text-to-video is asked for"
    return ""


def _is_alike(numbers: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    both = [key for key in config if key in numbers]
    # a file's shapes do not tell all numbers, but what few share says nothing
    return len(both) > 3 and all(as_json(numbers[key]) == as_json(config[key]) for key in both)
