"""Weights of a diffusers model: random from a seed, from wherever users have them, to a folder.

A backbone's `load` is these two lines; `weights` may then name all that `sources` knows:

    model = load_model(cls, spec, seed)
    model.setup = Setup.of(spec)
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError

from ...core.errors import UserError
from ...core.files import read_json, whole_folder, write_json
from ..dit.specs import DiTSpec
from .headers import check_tensors, read_headers, skeleton
from .hub import first_line as first_line
from .looks import check_numbers
from .quantize import bitsandbytes_config, gguf_config, settle_gguf
from .single_file import cast, load_gguf, load_tensors
from .sources import CHECKPOINT, Release, Source, check_experts, find_source, weight_files

if TYPE_CHECKING:
    from ..dit.model import DiT

D = TypeVar("D", bound="DiT")
DIFFUSERS = Release()


def load_model(
    cls: type[D],
    spec: DiTSpec,
    seed: int,
    *,
    release: Release = DIFFUSERS,
    begin: Callable[[D], None] | None = None,
) -> D:
    """Give the model of a spec in its dtype: its weights where it names some, else random ones.

    Args:
        cls: to build.
        spec: with `config`; its `loras` are added, frozen.
        seed: of random weights.
        release: how the model is laid out where people get it.
        begin: changes random weights before they are cast.

    Returns:
        The model without its `setup`, which is the caller's to set.

    Raises:
        UserError: as `pretrained_model`, or a LoRA cannot be read.
    """
    from ..lora.extra import stack  # which reads files with what is here

    dtype = getattr(torch, spec.dtype)
    if spec.weights is None:
        model = random_model(cls, spec.config, seed)
        if begin is not None:
            begin(model)
        cast(model, dtype)
    else:
        model = pretrained_model(
            cls, spec.config, spec.weights, dtype, quantize=spec.quantize, release=release
        )
    stack(model, spec.loras)
    return model


def random_model(cls: type[D], config: Mapping[str, Any], seed: int) -> D:
    """Give a model with diffusers' own initialisation; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: D = cls(**config)
    model.eval()
    return model


def pretrained_model(
    cls: type[D],
    config: Mapping[str, Any],
    weights: str | Path,
    dtype: torch.dtype,
    *,
    quantize: str = "none",
    release: Release = DIFFUSERS,
) -> D:
    """Give the model that `weights` names; pickles are never read.

    Args:
        cls: to build.
        config: diffusers' config that the weights must have; other keys are free.
        weights: a diffusers pipeline or model folder, one of the original release, a single
            .safetensors (diffusers', the original's or ComfyUI's names) or .gguf file, a hub id,
            a file on the hub, or weights that ship (`sources.find_source`).
        dtype: of the parameters but those that diffusers keeps in float32.
        quantize: none, nf4 or int8.
        release: how the model is laid out where people get it.

    Raises:
        UserError: there is nothing, or weights of another class or shape, damaged or incomplete
            ones, too little disk for a download, or an extra that is not installed.
    """
    source = find_source(str(weights), release.parts)
    check_experts(source, release)
    if source.gguf:
        if quantize != "none":
            raise UserError(f"weights {source.name} are quantised already: set quantize to none")
        found = load_gguf(cls, config, source, gguf_config(dtype, _plain(cls)), release.facts)
        settle_gguf(found, dtype)
        return found
    quantization = bitsandbytes_config(quantize, dtype)
    if source.path.is_dir() and _by_diffusers(cls, source, config, release):
        return _from_folder(cls, source, dtype, quantization)
    if quantization is not None:
        raise UserError(
            f"weights {source.name}: quantize {quantize} reads diffusers folders alone; of single "
            "files, take a GGUF that is quantised already"
        )
    return load_tensors(cls, config, source, dtype, release.facts)


def _plain(cls: Any) -> list[str]:
    """Give the modules that diffusers never casts: both ends of the model, and norms."""
    return list(cls._skip_layerwise_casting_patterns or ())


def _by_diffusers(
    cls: type[DiT], source: Source, config: Mapping[str, Any], release: Release
) -> bool:
    """Check a folder; whether diffusers wrote it, or it is of the original release.

    Raises:
        UserError: it is neither, or of another class or shape, damaged or incomplete.
    """
    found = read_json(source.path / "config.json", CHECKPOINT)
    name = found.get("_class_name") if isinstance(found, dict) else None
    files = weight_files(source)
    if release.original and name == release.original:
        return False
    if name != cls.diffusers_class:
        raise UserError(f"weights {source.name} are of {name}, not of {cls.diffusers_class}")
    check_numbers(source.name, _defaults(cls) | found, config)
    if found.get("quantization_config") is None:  # else diffusers reads other tensors
        check_tensors(source.name, read_headers(source.name, files), skeleton(cls, config))
    return True


def _defaults(cls: type[DiT]) -> dict[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def _from_folder(cls: type[D], source: Source, dtype: torch.dtype, quantization: Any) -> D:
    loader: Any = cls  # what diffusers gives is not typed
    try:
        with torch.random.fork_rng(devices=[]):
            model: D = loader.from_pretrained(
                str(source.path),
                torch_dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                quantization_config=quantization,
            )
    except (OSError, RuntimeError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"weights {source.name} cannot be read: {first_line(error)}") from error
    return model


def save(model: DiT, folder: Path) -> None:
    """Write config.json and safetensors as diffusers does, under the name of its own class."""
    if model.adapters():
        raise ValueError("a model with adapters has no plain weights: save the base before adding")
    with whole_folder(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        config = json.loads((part / "config.json").read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)  # where it was loaded from is no one's business
        write_json(part / "config.json", config | {"_class_name": model.diffusers_class})
