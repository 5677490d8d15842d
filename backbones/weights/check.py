"""What safetensors files say of their tensors, checked against a model before any is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...core.errors import UserError
from ...core.registry import registry
from ...core.tools.hub import first_line
from ..blocks.base import DiffusersBackbone
from ..specs import DiTSpec

D = TypeVar("D", bound=DiffusersBackbone)


def skeleton(cls: type[D], config: Mapping[str, Any]) -> D:
    """Return a model whose parameters are on the meta device; its buffers are real, as they load."""
    with init_empty_weights(), torch.random.fork_rng(devices=[]):
        model: D = cls(**config)
    return model


def read_headers(name: str, files: Sequence[Path]) -> dict[str, Tensor]:
    """Return the tensors of safetensors files by name, on the meta device: only headers are read.

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


def check_tensors(name: str, found: Mapping[str, Tensor], model: DiffusersBackbone) -> None:
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


# ⟦backbones/weights/looks.py⟧ Whether weights are of the model that a spec asks for, and of which one they look to be.


def check_numbers(name: str, found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse weights whose numbers are not those of `config`; what only one of them says is free.

    Args:
        name: of the weights, for the message.
        found: numbers of the weights, by their names in diffusers' config.
        config: the numbers that the spec asks for.

    Raises:
        UserError: with what differs, and the published backbones that the weights look like.
    """
    both = [key for key in config if key in found]
    wrong = [key for key in both if plain(found[key]) != plain(config[key])]
    if wrong:
        lines = ", ".join(f"{k} is {plain(found[k])}, not {plain(config[k])}" for k in wrong)
        raise UserError(f"weights {name} do not fit the spec: {lines}{_hint(found)}")


def looks_like(found: Mapping[str, Any]) -> list[str]:
    """Return the names of the published backbones that have these numbers."""
    return [name for name, config in _published() if _within(found, config)]


def plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _published() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for plugin in registry().of("backbone"):
        if issubclass(plugin.spec, DiTSpec) and plugin.spec.published:
            yield plugin.name, plugin.spec().config


def _within(found: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    both = [key for key in config if key in found]
    # a file's shapes do not tell all numbers, but what few share says nothing
    return len(both) > 3 and all(plain(found[key]) == plain(config[key]) for key in both)


def _hint(found: Mapping[str, Any]) -> str:
    if names := looks_like(found):
        return f"; they look like {' or '.join(names)}"
    ends = found.get("in_channels"), found.get("out_channels")
    if found.get("image_dim") or (None not in ends and ends[0] != ends[1]):
        return "; they look like an image-to-video model, and text-to-video is asked for"
    return ""
