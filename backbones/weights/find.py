"""Weights of DiTs, VAEs and text encoders: where they are, and what tells them from others.

`core.tools.hub.locate` finds the folder or file that a spec's `weights` names. What differs by kind
of model is here: the folders of a diffusers pipeline that are needed, the layouts that people have,
and what the config must say. No weights are loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import field, frozen
from torch import Tensor

from ...core.errors import UserError
from ...core.registry import registry, shipped_weights
from ...core.tools.files import open_tensors, read_object
from ...core.tools.hub import expand_path, locate, locate_offline, split_hub_name
from ..codecs.specs import WEIGHTS

CHECKPOINT = "diffusers checkpoint (config.json and safetensors files)"
TRANSFORMERS_MODEL = "folder of a transformers model (config.json and safetensors files)"
BACKBONE = "backbone"  # the folder of a DiT in weights that ship
NAME = "diffusion_pytorch_model"  # of diffusers' files
SINGLE_DIT = (".safetensors", ".gguf")
SINGLE_VAE = (".safetensors",)
VAE_FILES = ("vae/*.json", "vae/*.safetensors")
TEXT_FILES = ("*.json", "*.safetensors", "*.model", "*.txt")  # of each part
SAMPLES, SAMPLE = 256, 4096  # blocks of a file that a VAE's digest depends on, and their bytes
# Keys of a VAE's config, beside those that a spec asks for, that latents depend on.
NORMALISATION = ("latents_mean", "latents_std", "scaling_factor")
# Keys of a text encoder's config that change no embedding.
VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "merges.txt")
Facts = Callable[[Mapping[str, Tensor]], dict[str, Any]]


@frozen(kw_only=True)
class Release:
    """How a DiT is laid out where people get it.

    Attributes:
        parts: names of the folder that holds it inside a pipeline; the first that is there.
        original: what `_class_name` is in folders of the original release; empty: there are none.
        experts: whether its pipelines hold two transformers; None: they may.
        numbers: returns numbers of diffusers' config from the config.json of the original release.
        facts: returns numbers of diffusers' config from tensors in its names, so that a single file
            of another model can be told by these; None where nobody wrote it.
    """

    parts: tuple[str, ...] = ("transformer",)
    original: str = ""
    experts: bool | None = None
    numbers: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    facts: Facts | None = None


@frozen(kw_only=True)
class DiTWeights:
    """Where the weights of a DiT are.

    Attributes:
        name: what messages call it: the text, with the folder inside where there is one.
        path: a folder (with config.json and safetensors files) or a single file.
    """

    name: str
    path: Path

    @property
    def gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path.suffix == ".gguf"


def find_dit(text: str, parts: Sequence[str] = ("transformer",)) -> DiTWeights:
    """Return the place of the DiT that `weights` names; what is on disk goes before the hub.

    Args:
        text: a diffusers pipeline or one of its folders, a folder of the original release, a single
            file, a hub id (`org/name`), a hub file (`org/name/file.safetensors`), or the name of
            weights that ship.
        parts: names of the folder inside a pipeline that holds the model; the first that is there.

    Raises:
        UserError: there is nothing, it is a pipeline without such a folder, a pickle, or a
            download fails.
    """
    shipped = registry().weights.get(text)
    if shipped and not expand_path(text).exists():
        path = shipped / BACKBONE
    else:
        endings = [f"{part}/*.{kind}" for part in parts for kind in ("json", "safetensors")]
        # a model alone in its repository lies at its root
        patterns = [*endings, "model_index.json", "config.json", "diffusion_pytorch*"]
        expected = f"a {CHECKPOINT}, or weights that ship: {shipped_weights(text, BACKBONE)}"
        path = locate(text, patterns, expected=expected, suffixes=SINGLE_DIT)
    for part in parts:
        if (path / part).is_dir():
            return DiTWeights(name=f"{text.rstrip('/')}/{part}", path=path / part)
    if (path / "model_index.json").exists():
        raise UserError(f"weights {text} are a pipeline without {parts[0]}/: its model is missing")
    return DiTWeights(name=text, path=path)


def check_experts(weights: DiTWeights, release: Release) -> None:
    """Refuse a pipeline of one transformer where two are its model, or of two where one is.

    Their shapes are the same: only the pipeline's model_index.json tells them apart.

    Raises:
        UserError: with what is there, and what is asked for.
    """
    index = weights.path.parent / "model_index.json"
    if release.experts is None or not weights.path.is_dir() or not index.exists():
        return
    listed = read_object(index, CHECKPOINT)
    two = any(listed.get("transformer_2") or ())
    if "transformer" in listed and two != release.experts:
        both = "two transformers, for high and for low noise, as Wan 2.2 14B has"
        actual, expected = (both, "one") if two else ("one transformer, as Wan 2.1 has", both)
        raise UserError(
            f"weights {weights.name}: found a pipeline of {actual}; expected {expected}"
        )


def weight_files(weights: DiTWeights) -> list[Path]:
    """Return the files of a DiT's weights: one, or the shards that an index lists.

    Raises:
        UserError: there are none, or a shard is missing.
    """
    name, path = weights.name, weights.path
    if path.is_file():
        return [path]
    whole, index = path / f"{NAME}.safetensors", path / f"{NAME}.safetensors.index.json"
    if not index.exists():
        if not whole.exists():
            reason = f"hold no safetensors files ({whole.name}): this is no {CHECKPOINT}"
            raise UserError(f"weights {name} {reason}")
        return [whole]
    shard_by_tensor = read_object(index, CHECKPOINT, "weight_map")["weight_map"]
    listed = shard_by_tensor.values() if isinstance(shard_by_tensor, dict) else ()
    shards = sorted({str(shard) for shard in listed})
    lost = [shard for shard in shards if not (path / shard).exists()]
    if lost or not shards:
        what = f"{len(lost)} of {len(shards)} shards, such as {lost[0]}" if lost else "all shards"
        raise UserError(f"weights {name} lack {what}: copy or download them again")
    return [path / shard for shard in shards]


@frozen(kw_only=True)
class VaeRelease:
    """Which VAE a spec asks for, and where people get it.

    Attributes:
        cls: diffusers' class.
        config: what its config must say; other keys are free.
        defaults: values of these keys where a config leaves them out: those of the class.
        hub: where the published weights are, for messages.
        single_file: whether one file without a config says enough.
        constants: what the config of the published weights says besides; single files take it.
    """

    cls: str
    config: Mapping[str, Any]
    defaults: Mapping[str, Any]
    hub: str
    single_file: bool
    constants: Mapping[str, Any] = field(factory=dict)


@frozen(kw_only=True)
class VaeWeights:
    """Where the weights of a VAE are, as checked.

    Attributes:
        path: a diffusers folder, or one file whose config is the spec's.
        config: what its latents depend on.
        files: its safetensors files.
    """

    path: Path
    config: Mapping[str, Any]
    files: tuple[Path, ...]

    def digest(self) -> str:
        """Return 16 hex digits of the weights: config, each file's header, size and samples.

        4 KiB are read at 256 even places of a file, so that gigabytes are told apart at once.
        """
        digest = hashlib.sha256(json.dumps(dict(self.config), sort_keys=True).encode())
        for path in self.files:
            size = path.stat().st_size
            digest.update(str(size).encode())
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                digest.update(file.read(min(length, size)))
                for index in range(SAMPLES):
                    file.seek(8 + length + (size - 8 - length) * index // SAMPLES)
                    digest.update(file.read(SAMPLE))
        return digest.hexdigest()[:16]


def find_vae(text: str, release: VaeRelease) -> VaeWeights:
    """Return the VAE that `weights` names; what is on disk goes before the hub.

    Args:
        text: a diffusers pipeline or its vae folder, a single safetensors file, or a hub id.
        release: which VAE it must be.

    Raises:
        UserError: nothing is there, or a pickle, another class, another shape, a damaged file.
    """
    expected = f"{WEIGHTS}, such as {release.hub}"
    path = locate(text, VAE_FILES, expected=expected, suffixes=SINGLE_VAE)
    if path.is_dir():
        folder = _vae_folder(path)
        if folder is None:
            raise UserError(f"weights {text}: no VAE is there (config.json); name {WEIGHTS}")
        return _vae_of_folder(folder, release)
    if path.name == f"{NAME}.safetensors" and _has_config(path.parent):
        return _vae_of_folder(path.parent, release)
    return _vae_of_file(path, release)


def vae_available_offline(text: str) -> bool:
    """Whether `find_vae` would look at something here, a VAE or not, without asking the hub."""
    path = locate_offline(text, VAE_FILES, SINGLE_VAE)
    if path is None or path.is_file():
        return path is not None
    folder = _vae_folder(path)
    if folder is None or expand_path(text).is_dir():
        return folder is not None
    return any(folder.glob(f"{NAME}*.safetensors"))  # the cache may have the config alone


def _vae_folder(path: Path) -> Path | None:
    """Return the folder with the VAE's config.json, inside a pipeline or by itself."""
    return next((place for place in (path / "vae", path) if _has_config(place)), None)


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _vae_of_folder(folder: Path, release: VaeRelease) -> VaeWeights:
    what = f"VAE of {release.cls}"
    config = dict(release.defaults) | read_object(folder / "config.json", what, "_class_name")
    if config["_class_name"] != release.cls:
        raise UserError(f"weights {folder} are of {config['_class_name']}, not of {release.cls}")
    asked = {key: as_json(value) for key, value in release.config.items()}
    wrong = [key for key in asked if as_json(config.get(key)) != asked[key]]
    if wrong:
        lines = ", ".join(f"{key} is {config.get(key)}, not {asked[key]}" for key in wrong)
        raise UserError(f"weights {folder} do not fit the spec: {lines}")
    one = folder / f"{NAME}.safetensors"
    files = (one,) if one.is_file() else tuple(sorted(folder.glob(f"{NAME}-*-of-*.safetensors")))
    if not files:
        raise UserError(
            f"weights {folder} hold no {one.name} (pickles are never read); take vae/ of "
            f"{release.hub}"
        )
    for file in files:  # their headers say how long they should be: a file that is cut is refused
        with open_tensors(file):
            pass
    read = {key: config[key] for key in (*release.config, *NORMALISATION) if key in config}
    return VaeWeights(path=folder, config=read, files=files)


def _vae_of_file(file: Path, release: VaeRelease) -> VaeWeights:
    if not release.single_file:
        raise UserError(
            f"weights {file}: one file does not say all that this VAE needs; name the vae folder "
            f"of {release.hub}"
        )
    with open_tensors(file) as opened:
        # of Wan's own layout, and of diffusers'
        known = {"conv1.bias", "quant_conv.bias"} & set(opened.keys())
        if not known:
            raise UserError(f"weights {file} are of no {release.cls}; take vae/ of {release.hub}")
        channels = opened.get_slice(min(known)).get_shape()[0] // 2
    if channels != release.config["z_dim"]:
        raise UserError(
            f"weights {file} make latents of {channels} channels, not {release.config['z_dim']}"
        )
    config = {**release.config, **release.constants}
    return VaeWeights(path=file, config=config, files=(file,))


def as_json(value: Any) -> Any:
    """Return a value of a config as JSON has it: tuples as lists."""
    return list(value) if isinstance(value, tuple) else value


def find_text_encoder(text: str, parts: Sequence[str]) -> Path:
    """Return the diffusers folder that `weights` names; what is on disk goes before the hub.

    Args:
        text: a folder, or a hub id such as `Wan-AI/Wan2.2-TI2V-5B-Diffusers`.
        parts: the subfolders that are needed.

    Raises:
        UserError: no such folder, it lacks a part, or the hub does not give it.
    """
    expected = f"a diffusers folder with {', '.join(parts)}, or a hub id (org/name)"
    label = "text encoder weights"
    folder = locate(text, _text_patterns(parts), expected=expected, label=label)
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{label} {text} have no subfolder {missing[0]}: name {expected}")
    return folder


def text_encoder_available_offline(text: str, parts: Sequence[str]) -> bool:
    """Whether all parts are here, in the folder or in the hub's cache."""
    folder = locate_offline(text, _text_patterns(parts))
    return folder is not None and all((folder / part).is_dir() for part in parts)


def text_encoder_identity(text: str, parts: Sequence[str]) -> str:
    """Return a short name of weights: a hub id as it is, a folder by a digest of what is in it.

    Weights are not loaded: of every tensor its name, type, shape and one row in the middle count.

    Raises:
        UserError: no such folder, it lacks a part, or it cannot be read.
    """
    if not expand_path(text).is_dir() and split_hub_name(text):
        return text
    digest = hashlib.sha256()
    for part in parts:
        folder = find_text_encoder(text, parts) / part
        is_model = _has_config(folder)
        marks = _marks_of_model(folder) if is_model else _marks_of_tokenizer(folder)
        digest.update(json.dumps([part, marks], sort_keys=True).encode())
    return digest.hexdigest()[:12]


def _text_patterns(parts: Sequence[str]) -> list[str]:
    return [f"{part}/{files}" for part in parts for files in TEXT_FILES]


def _marks_of_model(folder: Path) -> list[object]:
    """Return what tells a model from others: its config, and a mark of every tensor."""
    config = read_object(folder / "config.json", TRANSFORMERS_MODEL)
    marks: list[object] = [{key: x for key, x in config.items() if key not in VOLATILE}]
    for path in sorted(folder.glob("*.safetensors")):
        with open_tensors(path) as file:
            marks += [_mark_of_tensor(name, file) for name in sorted(file.keys())]
    return marks


def _mark_of_tensor(name: str, file: Any) -> list[object]:
    part = file.get_slice(name)
    shape = part.get_shape()
    middle = shape[0] // 2 if shape else 0
    row = part[middle : middle + 1] if shape else file.get_tensor(name)
    data = row.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
    return [name, part.get_dtype(), shape, hashlib.sha256(data).hexdigest()]


def _marks_of_tokenizer(folder: Path) -> list[object]:
    """Return name and hash of a tokenizer's files; its config's version numbers are left out."""
    paths = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    return [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in paths]
