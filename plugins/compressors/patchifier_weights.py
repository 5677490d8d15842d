"""FramePack's projections out of its transformer's safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...core.errors import UserError
from ...core.files import open_tensors

PREFIX = "clean_x_embedder."
NAMES = {"1": "proj", "2": "proj_2x", "4": "proj_4x"}


def framepack_weights(text: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the projections that a FramePack transformer holds, under the names of `like`.

    Args:
        text: a safetensors file, or a diffusers folder (also one with transformer/ in it).
        like: names (`projections.<rate>.weight`), shapes and dtypes that are wanted.

    Raises:
        UserError: there is no such file, none of them has FramePack's projections, or they are of
            another width or number of channels.
    """
    wanted = {_key(name): name for name in like}
    found: dict[str, Tensor] = {}
    for path in _files(text):
        with open_tensors(path) as file:
            present = wanted.keys() & set(file.keys())
            found |= {wanted[key]: file.get_tensor(key) for key in present}
    for key, name in wanted.items():
        _check(text, key, found.get(name), like[name])
    return {name: found[name].to(like[name].dtype) for name in like}


def _key(name: str) -> str:
    _, rate, end = name.split(".")
    return f"{PREFIX}{NAMES[rate]}.{end}"


def _files(text: str) -> list[Path]:
    place = Path(text)
    if place.is_file():
        return [place]
    for folder in (place, place / "transformer"):
        if files := sorted(folder.glob("*.safetensors")):
            return files
    raise UserError(
        f"weights {text}: there is no such safetensors file, nor a folder that holds some; name a "
        "FramePack transformer"
    )


def _check(text: str, key: str, found: Tensor | None, wanted: Tensor) -> None:
    if found is None:
        raise UserError(f"weights {text} are no FramePack transformer: {key} is missing")
    if found.shape != wanted.shape:
        raise UserError(
            f"weights {text} do not fit: {key} is {list(found.shape)}, this DiT asks for "
            f"{list(wanted.shape)}"
        )
