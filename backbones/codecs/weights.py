"""Weights of diffusers' VAEs: found, checked and named without loading them; loaded on demand."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from ...core.errors import UserError
from ...core.files import open_tensors, read_object
from ..weights.hub import cached, download
from ..weights.sources import path_of
from .specs import WEIGHTS

NAME = "diffusion_pytorch_model"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FETCHED = ("vae/*.json", "vae/*.safetensors")
PICKLES = (".pth", ".pt", ".ckpt", ".bin", ".pkl")
NUMBERS = ("latents_mean", "latents_std", "scaling_factor")  # of a config, that latents depend on
SAMPLES, SAMPLE = 256, 4096  # blocks of a file that its name depends on, and their bytes


@frozen(kw_only=True)
class Kind:
    """Which VAE is wanted.

    Attributes:
        cls: diffusers' class.
        config: what its config must say; other keys are free.
        absent: values of these keys where a config leaves them out: defaults of the class.
        hub: where the published weights are, for messages.
        single: whether one file without a config says enough.
    """

    cls: str
    config: Mapping[str, Any]
    absent: Mapping[str, Any]
    hub: str
    single: bool


@frozen(kw_only=True)
class Source:
    """Weights that were found: a diffusers folder, or one file whose config is the spec's.

    `config` holds what its latents depend on.
    """

    path: Path
    config: Mapping[str, Any]
    files: tuple[Path, ...]


def find(text: str, kind: Kind) -> Source:
    """Give where weights are; those of a hub id are fetched where they are not here yet.

    Raises:
        UserError: nothing is there, or a pickle, another class, another shape, a damaged file.
    """
    path = path_of(text)
    if path.suffix in PICKLES:
        raise UserError(
            f"weights {text}: a pickle, which could run code, is never read; take "
            f"vae/{NAME}.safetensors of {kind.hub}"
        )
    if path.is_file() and not (path.name == f"{NAME}.safetensors" and _config(path.parent)):
        return _single(path, kind)
    return _folder(path.parent if path.is_file() else _place(text, path), kind)


def at_hand(text: str) -> bool:
    """Whether `find` would look at something here, a VAE or not, without asking the hub."""
    path = path_of(text)
    if path.is_dir() or path.is_file():
        return path.is_file() or _inside(path) is not None
    found = cached(text, FETCHED) if HUB_ID.fullmatch(text) else None
    place = None if found is None else _inside(found)
    return place is not None and any(place.glob(f"{NAME}*.safetensors"))


def _place(text: str, path: Path) -> Path:
    """Give the folder with the VAE's config.json."""
    if not path.is_dir():
        path = _fetched(text)
    found = _inside(path)
    if found is None:
        raise UserError(f"weights {text}: no VAE is there (config.json); name {WEIGHTS}")
    return found


def _inside(path: Path) -> Path | None:
    return next((place for place in (path / "vae", path) if _config(place)), None)


def _config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _fetched(text: str) -> Path:
    a_file = text.startswith(".") or text.endswith(".safetensors")
    if a_file or not HUB_ID.fullmatch(text):
        raise UserError(f"weights {text}: no such file or folder; name {WEIGHTS}")
    return download(text, list(FETCHED))


def _folder(folder: Path, kind: Kind) -> Source:
    what = f"VAE of {kind.cls}"
    found = dict(kind.absent) | read_object(folder / "config.json", what, "_class_name")
    if found["_class_name"] != kind.cls:
        raise UserError(f"weights {folder} are of {found['_class_name']}, not of {kind.cls}")
    wrong = [k for k, wanted in kind.config.items() if _plain(found.get(k)) != _plain(wanted)]
    if wrong:
        lines = ", ".join(f"{k} is {found.get(k)}, not {_plain(kind.config[k])}" for k in wrong)
        raise UserError(f"weights {folder} do not fit the spec: {lines}")
    kept = {k: found[k] for k in (*kind.config, *NUMBERS) if k in found}
    return _whole(Source(path=folder, config=kept, files=_files(folder, kind)))


def _files(folder: Path, kind: Kind) -> tuple[Path, ...]:
    one = folder / f"{NAME}.safetensors"
    files = (one,) if one.is_file() else tuple(sorted(folder.glob(f"{NAME}-*-of-*.safetensors")))
    if not files:
        raise UserError(
            f"weights {folder} hold no {one.name} (pickles are never read); take vae/ of {kind.hub}"
        )
    return files


def _single(file: Path, kind: Kind) -> Source:
    if file.suffix != ".safetensors" or not kind.single:
        raise UserError(
            f"weights {file}: one file does not say all that this VAE needs; name the vae folder "
            f"of {kind.hub}"
        )
    with open_tensors(file) as opened:
        known = {"conv1.bias", "quant_conv.bias"} & set(opened.keys())
        if not known:
            raise UserError(f"weights {file} are of no {kind.cls}; take vae/ of {kind.hub}")
        channels = opened.get_slice(min(known)).get_shape()[0] // 2
    if channels != kind.config["z_dim"]:
        raise UserError(
            f"weights {file} make latents of {channels} channels, not {kind.config['z_dim']}"
        )
    return Source(path=file, config=kind.config, files=(file,))


def _whole(source: Source) -> Source:
    """Refuse files that are cut off: their headers say how long they should be."""
    for file in source.files:
        with open_tensors(file):
            pass
    return source


def digest(source: Source) -> str:
    """Give 16 hex digits of what the weights are: config, each file's header, size and samples.

    4 KiB are read at 256 even places of a file, so that a VAE of gigabytes has its name at once.
    """
    found = hashlib.sha256(json.dumps(dict(source.config), sort_keys=True).encode())
    for file in source.files:
        size = file.stat().st_size
        found.update(str(size).encode())
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            found.update(opened.read(min(length, size)))
            for index in range(SAMPLES):
                opened.seek(8 + length + (size - 8 - length) * index // SAMPLES)
                found.update(opened.read(SAMPLE))
    return found.hexdigest()[:16]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
