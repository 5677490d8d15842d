"""Where the weights of a text encoder are, and what tells them from others."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...core.errors import UserError
from ...core.files import open_tensors, read_object
from ..weights.hub import cached, download
from ..weights.sources import path_of

WHAT = "folder of a transformers model (config.json and safetensors files)"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt")  # no pickles
VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def located(weights: str, parts: Sequence[str]) -> Path:
    """Give the diffusers folder that `weights` names; what a hub id lacks here is fetched.

    Args:
        weights: a folder, or a hub id such as `Wan-AI/Wan2.2-TI2V-5B-Diffusers`.
        parts: the subfolders that are needed.

    Raises:
        UserError: no such folder, it lacks a part, or the hub does not give it.
    """
    path = path_of(weights)
    folder = path if path.is_dir() else _fetched(weights, parts)
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise UserError(
            f"text encoder weights {weights} have no subfolder {missing[0]}: a diffusers folder "
            f"with {', '.join(parts)} is wanted"
        )
    return folder


def at_hand(weights: str, parts: Sequence[str]) -> bool:
    """Whether all parts are here, in the folder or in the hub's cache."""
    here: Path | None = path_of(weights)
    if not path_of(weights).is_dir():
        here = cached(weights, parts) if HUB_ID.fullmatch(weights) else None
    return here is not None and all((here / part).is_dir() for part in parts)


def origin(weights: str, parts: Sequence[str]) -> str:
    """Give a short name of weights: a hub id as it is, a folder by a digest of what is in it.

    Weights are not loaded: of every tensor its name, type, shape and one row in the middle count.

    Raises:
        UserError: no such folder, it lacks a part, or it cannot be read.
    """
    if not path_of(weights).is_dir() and HUB_ID.fullmatch(weights):
        return weights
    digest = hashlib.sha256()
    for part in parts:
        folder = located(weights, parts) / part
        config = folder / "config.json"
        marks = _model_marks(folder) if config.exists() else _file_marks(folder)
        digest.update(json.dumps([part, marks], sort_keys=True).encode())
    return digest.hexdigest()[:12]


def _fetched(weights: str, parts: Sequence[str]) -> Path:
    if not HUB_ID.fullmatch(weights):
        raise UserError(
            f"text encoder weights {weights}: no such folder; name a diffusers folder with "
            f"{', '.join(parts)}, or a hub id (org/name)"
        )
    return download(weights, [f"{part}/{files}" for part in parts for files in FETCHED])


def _model_marks(folder: Path) -> list[object]:
    config = read_object(folder / "config.json", WHAT)
    marks: list[object] = [{k: v for k, v in config.items() if k not in VOLATILE}]
    for path in sorted(folder.glob("*.safetensors")):
        with open_tensors(path) as file:
            marks += [_tensor_mark(name, file) for name in sorted(file.keys())]
    return marks


def _tensor_mark(name: str, file: Any) -> list[object]:
    part = file.get_slice(name)
    shape = part.get_shape()
    middle = shape[0] // 2 if shape else 0
    row = part[middle : middle + 1] if shape else file.get_tensor(name)
    data = row.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return [name, part.get_dtype(), shape, hashlib.sha256(data).hexdigest()]


def _file_marks(folder: Path) -> list[object]:
    """Give the files of a tokenizer; its config's version numbers are left out."""
    names = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "merges.txt")
    found = [folder / name for name in names if (folder / name).exists()]
    return [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in found]
