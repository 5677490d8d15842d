"""The adapters of two experts in one file: each one's own file, by the prefix of its name."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import save_file
from torch import Tensor

from ...core.errors import UserError
from ...core.files import open_tensors, whole_file
from ...core.lora_file import LoraFile
from ...core.spec import BackboneSpec
from ..lora import export as lora_export
from .model import Wan

# what a single model's files call the same: LoRA, and cross-attention to features of a memory
PREFIXES = {
    "transformer": {"transformer.": "transformer.", "memory.enhancer.": "memory.enhancer."},
    "transformer_2": {"transformer.": "transformer_2.", "memory.enhancer.": "memory.enhancer_2."},
}


def save(experts: Mapping[str, Wan], path: Path) -> None:
    """Write the adapters of experts by diffusers' names (`transformer.*`, `transformer_2.*`).

    Raises:
        ValueError: there are none.
    """
    tensors: dict[str, Tensor] = {}
    config: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, expert in experts.items():
            own = Path(folder) / f"{name}.safetensors"
            expert.save_adapters(own)
            found, said = _read(own)
            tensors |= _renamed(found, PREFIXES[name])
            config |= _renamed(said, PREFIXES[name])
    metadata = {"format": "pt", LORA_ADAPTER_METADATA_KEY: json.dumps(config, sort_keys=True)}
    with whole_file(path) as part:
        save_file(tensors, part, metadata=metadata if config else {"format": "pt"})


def load(experts: Mapping[str, Wan], path: Path) -> None:
    """Read such a file into the experts.

    Raises:
        UserError: no such file, one of a single model, or what an expert refuses of its part.
    """
    for name, expert in experts.items():
        with part_of(path, name) as own:
            expert.load_adapters(own)


@contextmanager
def part_of(path: Path, name: str) -> Iterator[Path]:
    """Give a file with the adapters of one expert alone, by the keys of a single model.

    Raises:
        UserError: no such file, or it holds nothing for the expert; what is raised while the part
            is read names `path`.
    """
    found, said = _read(path)
    back = {there: here for here, there in PREFIXES[name].items()}
    tensors, config = _renamed(found, back), _renamed(said, back)
    if not tensors:
        raise UserError(f"{path} holds nothing for {name}: it is of one expert, not of two")
    kept = {LORA_ADAPTER_METADATA_KEY: json.dumps(config)} if config else None
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "adapters.safetensors"
        save_file(tensors, own, metadata=kept)
        try:
            yield own
        except UserError as error:
            raise UserError(str(error).replace(str(own), f"{path} ({name})")) from error


def export(cls: type[Wan], spec: BackboneSpec, path: Path, layout: str) -> dict[str, LoraFile]:
    """Give the adapters of each expert in a layout (`Backbone.export_adapters`)."""
    found = {}
    for expert, name in (("high", "transformer"), ("low", "transformer_2")):
        with part_of(path, name) as own:
            file = lora_export.export(cls, spec, own, layout)
        found[expert] = attrs.evolve(file, besides=_renamed(file.besides, PREFIXES[name]))
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give the tensors of a file, and what its metadata says of the LoRA."""
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = (file.metadata() or {}).get(LORA_ADAPTER_METADATA_KEY)
    return tensors, json.loads(text) if text else {}


def _renamed(values: Mapping[str, Any], prefixes: Mapping[str, str]) -> dict[str, Any]:
    """Give what begins with one of the prefixes, under the other one."""
    return {
        there + name.removeprefix(here): value
        for name, value in values.items()
        for here, there in prefixes.items()
        if name.startswith(here)
    }
