"""Weights of a diffusers model: random from a seed, or from and to a folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError

from ...core.errors import UserError
from ...core.files import read_json, whole_folder, write_json
from ...core.registry import registry

if TYPE_CHECKING:
    from .model import DiT

D = TypeVar("D", bound="DiT")
CHECKPOINT = "diffusers checkpoint (config.json and safetensors files)"


def random_model(cls: type[D], config: Mapping[str, Any], seed: int) -> D:
    """Give a model with diffusers' own initialisation; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: D = cls(**config)
    model.eval()
    return model


def pretrained_model(
    cls: type[D], config: Mapping[str, Any], folder: Path, dtype: torch.dtype
) -> D:
    """Give the model that a diffusers folder holds; pickles are never read.

    Args:
        cls: to build.
        config: what the folder's config must say; other keys are free.
        folder: with config.json and safetensors files.
        dtype: of the parameters.

    Raises:
        UserError: no such folder, no diffusers checkpoint, another class, another shape, or
            weights that are damaged or do not fit their config.
    """
    check_folder(cls, folder, config)
    try:
        with torch.random.fork_rng(devices=[]):
            loader: Any = cls  # what diffusers gives is not typed
            model, info = loader.from_pretrained(
                str(folder),
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"weights {folder} cannot be read: {first_line(error)}") from error
    missing = info["missing_keys"]
    if missing:
        raise UserError(f"weights {folder} lack {len(missing)} tensors, such as {min(missing)}")
    return model  # type: ignore[no-any-return]


def weights_folder(text: str) -> Path:
    """Give the folder that `weights` names: one on disk, or the backbone of weights that ship."""
    shipped = registry().weights.get(text)
    return shipped / "backbone" if shipped and not Path(text).is_dir() else Path(text)


def check_folder(cls: type[DiT], folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder that is no diffusers checkpoint of this class and shape: UserError."""
    if not folder.is_dir():
        raise UserError(f"weights {folder}: no such folder; name one with a {CHECKPOINT}")
    found = read_json(folder / "config.json", CHECKPOINT)
    if not isinstance(found, dict) or not any(folder.glob("*.safetensors")):
        raise UserError(f"weights {folder} hold no safetensors files: this is no {CHECKPOINT}")
    if found.get("_class_name") != cls.diffusers_class:
        raise UserError(
            f"weights {folder} are of {found.get('_class_name')}, not of {cls.diffusers_class}"
        )
    found = _defaults(cls) | found
    wrong = [key for key, value in config.items() if _plain(found[key]) != _plain(value)]
    if wrong:
        lines = ", ".join(f"{key} is {found[key]}, not {_plain(config[key])}" for key in wrong)
        raise UserError(f"weights {folder} do not fit the spec: {lines}")


def _defaults(cls: type[DiT]) -> dict[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def save(model: DiT, folder: Path) -> None:
    """Write config.json and safetensors as diffusers does, under the name of its own class."""
    if model.adapters():
        raise ValueError("a model with adapters has no plain weights: save the base before adding")
    with whole_folder(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # where it was loaded from is no one's business
        write_json(part / "config.json", config | {"_class_name": model.diffusers_class})


def first_line(error: Exception) -> str:
    """Give what an error says, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
