"""What the text of `weights` names: a place on this disk, after a download where it needs one.

A diffusers pipeline or one of its folders, a folder of the original release, a single file, a hub
repository or a file in one, or weights that ship: `find_source` gives the same for all of them,
and `files.pretrained_model` loads it. Nothing else reads what users write there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from ...core.errors import UserError
from ...core.registry import registry
from ...core.tools.files import open_tensors, read_object
from ...core.tools.hub import cached, download, first_line
from ..codecs.specs import WEIGHTS

CHECKPOINT = "diffusers checkpoint (config.json and safetensors files)"
DIT_WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{DIT_WEIGHTS}.index.json"
SINGLE = (".safetensors", ".gguf")
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
Facts = Callable[[Mapping[str, Tensor]], dict[str, Any]]
_HUB = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/(.+))?")


@frozen(kw_only=True)
class Release:
    """How a model is laid out where people get it.

    Attributes:
        parts: names of the folder that holds it inside a pipeline; the first that is there.
        original: what `_class_name` is in folders of the original release; empty: there are none.
        experts: whether its pipelines hold two transformers; None: they may.
        facts: gives numbers of diffusers' config from tensors in its names, so that a single file
            of another model can be told by these; None where nobody wrote it.
    """

    parts: tuple[str, ...] = ("transformer",)
    original: str = ""
    experts: bool | None = None
    facts: Facts | None = None


@frozen(kw_only=True)
class Source:
    """Where the weights of one model are.

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


def find_source(text: str, parts: Sequence[str] = ("transformer",)) -> Source:
    """Return the place that `weights` names; what is on disk goes before the hub.

    Args:
        text: a folder, a file, a hub id (`org/name`), a hub file (`org/name/file.safetensors`), or
            weights that ship.
        parts: names of the folder inside a pipeline that holds the model; the first that is there.

    Raises:
        UserError: there is nothing, it is a pipeline without such a folder, a pickle, or a
            download fails.
    """
    path = path_of(text)
    shipped = registry().weights.get(text)
    if shipped and not path.exists():
        return _part(shipped / "backbone", text, parts)
    if path.is_dir():
        return _part(path, text, parts)
    if path.is_file():
        return Source(name=text, path=_single(path))
    if found := _HUB.fullmatch(text):
        return _of_hub(found[1], found[2], parts)
    raise UserError(f"weights {text}: no such folder or file; name one with a {CHECKPOINT}")


def path_of(text: str) -> Path:
    """Return the path that users write, `~` for their home.

    Raises:
        UserError: no path can be that, or this system does not let us look there.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # too long, or of a user who is not here
        said = error.strerror if isinstance(error, OSError) else first_line(error)
        raise UserError(f"{text if len(text) < 99 else text[:99] + '…'}: {said}") from None
    return path


def _single(path: Path) -> Path:
    if path.suffix in PICKLED:
        raise UserError(f"weights {path} are pickled, which can run code: safetensors are read")
    if path.suffix not in SINGLE:
        raise UserError(f"weights {path}: a single file is {' or '.join(SINGLE)}")
    return path


def _of_hub(repo: str, file: str | None, parts: Sequence[str]) -> Source:
    if file:
        name = f"{repo}/{file}"
        path = download(repo, [str(_single(Path(file)))]) / file
        if not path.is_file():
            raise UserError(f"weights {name}: the hub's {repo} has no file {file}")
        return Source(name=name, path=path)
    endings = [f"{part}/*.{kind}" for part in parts for kind in ("json", "safetensors")]
    # a model alone in its repository lies at its root
    folder = download(repo, [*endings, "model_index.json", "config.json", "diffusion_pytorch*"])
    if not folder.is_dir():
        raise UserError(f"weights {repo}: the hub's repository has no {parts[0]}/")
    return _part(folder, repo, parts)


def _part(folder: Path, name: str, parts: Sequence[str]) -> Source:
    """Return the folder that holds the model: this one, or one inside."""
    for part in parts:
        if (folder / part).is_dir():
            return Source(name=f"{name.rstrip('/')}/{part}", path=folder / part)
    if (folder / "model_index.json").exists():
        raise UserError(f"weights {name} are a pipeline without {parts[0]}/: its model is missing")
    return Source(name=name, path=folder)


def check_experts(source: Source, release: Release) -> None:
    """Refuse a pipeline of one transformer where two are its model, or of two where one is.

    Their shapes are the same: only the pipeline's model_index.json tells them apart.

    Raises:
        UserError: with what is there, and what is asked for.
    """
    index = source.path.parent / "model_index.json"
    if release.experts is None or not source.path.is_dir() or not index.exists():
        return
    listed = read_object(index, CHECKPOINT)
    two = any(listed.get("transformer_2") or ())
    if "transformer" in listed and two != release.experts:
        experts = "two transformers, for high and for low noise, as Wan 2.2 14B has"
        found, wanted = (experts, "one") if two else ("one transformer, as Wan 2.1 has", experts)
        raise UserError(f"weights {source.name}: found a pipeline of {found}; expected {wanted}")


def weight_files(source: Source) -> list[Path]:
    """Return the safetensors files of a source: one, or the shards that its index lists.

    Raises:
        UserError: there are none, or a shard is missing.
    """
    if source.path.is_file():
        return [source.path]
    if not (source.path / INDEX).exists():
        if not (source.path / DIT_WEIGHTS).exists():
            said = f"hold no safetensors files ({DIT_WEIGHTS}): this is no {CHECKPOINT}"
            raise UserError(f"weights {source.name} {said}")
        return [source.path / DIT_WEIGHTS]
    index = read_object(source.path / INDEX, CHECKPOINT, "weight_map")["weight_map"]
    shards = sorted({str(x) for x in index.values()}) if isinstance(index, dict) else []
    lost = [shard for shard in shards if not (source.path / shard).exists()]
    if lost or not shards:
        said = f"{len(lost)} of {len(shards)} shards, such as {lost[0]}" if lost else "all shards"
        raise UserError(f"weights {source.name} lack {said}: copy or download them again")
    return [source.path / shard for shard in shards]


# ⟦backbones/codecs/weights.py⟧ Weights of diffusers' VAEs: found, checked and named without loading them; loaded on demand.


NAME = "diffusion_pytorch_model"
VAE_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
VAE_FETCHED = ("vae/*.json", "vae/*.safetensors")
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
class VaeSource:
    """Weights that were found: a diffusers folder, or one file whose config is the spec's.

    `config` holds what its latents depend on.
    """

    path: Path
    config: Mapping[str, Any]
    files: tuple[Path, ...]


def find(text: str, kind: Kind) -> VaeSource:
    """Return where weights are; those of a hub id are fetched where they are not here yet.

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
        return _single_vae(path, kind)
    return _folder(path.parent if path.is_file() else _place(text, path), kind)


def vae_at_hand(text: str) -> bool:
    """Whether `find` would look at something here, a VAE or not, without asking the hub."""
    path = path_of(text)
    if path.is_dir() or path.is_file():
        return path.is_file() or _inside(path) is not None
    found = cached(text, VAE_FETCHED) if VAE_HUB_ID.fullmatch(text) else None
    place = None if found is None else _inside(found)
    return place is not None and any(place.glob(f"{NAME}*.safetensors"))


def _place(text: str, path: Path) -> Path:
    """Return the folder with the VAE's config.json."""
    if not path.is_dir():
        path = _fetched_vae(text)
    found = _inside(path)
    if found is None:
        raise UserError(f"weights {text}: no VAE is there (config.json); name {WEIGHTS}")
    return found


def _inside(path: Path) -> Path | None:
    return next((place for place in (path / "vae", path) if _config(place)), None)


def _config(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _fetched_vae(text: str) -> Path:
    a_file = text.startswith(".") or text.endswith(".safetensors")
    if a_file or not VAE_HUB_ID.fullmatch(text):
        raise UserError(f"weights {text}: no such file or folder; name {WEIGHTS}")
    return download(text, list(VAE_FETCHED))


def _folder(folder: Path, kind: Kind) -> VaeSource:
    what = f"VAE of {kind.cls}"
    found = dict(kind.absent) | read_object(folder / "config.json", what, "_class_name")
    if found["_class_name"] != kind.cls:
        raise UserError(f"weights {folder} are of {found['_class_name']}, not of {kind.cls}")
    wrong = [k for k, wanted in kind.config.items() if _plain(found.get(k)) != _plain(wanted)]
    if wrong:
        lines = ", ".join(f"{k} is {found.get(k)}, not {_plain(kind.config[k])}" for k in wrong)
        raise UserError(f"weights {folder} do not fit the spec: {lines}")
    kept = {k: found[k] for k in (*kind.config, *NUMBERS) if k in found}
    return _whole(VaeSource(path=folder, config=kept, files=_files(folder, kind)))


def _files(folder: Path, kind: Kind) -> tuple[Path, ...]:
    one = folder / f"{NAME}.safetensors"
    files = (one,) if one.is_file() else tuple(sorted(folder.glob(f"{NAME}-*-of-*.safetensors")))
    if not files:
        raise UserError(
            f"weights {folder} hold no {one.name} (pickles are never read); take vae/ of {kind.hub}"
        )
    return files


def _single_vae(file: Path, kind: Kind) -> VaeSource:
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
    return VaeSource(path=file, config=kind.config, files=(file,))


def _whole(source: VaeSource) -> VaeSource:
    """Refuse files that are cut off: their headers say how long they should be."""
    for file in source.files:
        with open_tensors(file):
            pass
    return source


def digest(source: VaeSource) -> str:
    """Return 16 hex digits of what the weights are: config, each file's header, size and samples.

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


# ⟦backbones/texts/weights.py⟧ Where the weights of a text encoder are, and what tells them from others.


WHAT = "folder of a transformers model (config.json and safetensors files)"
TEXT_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
TEXT_FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt")  # no pickles
VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version")


def located(weights: str, parts: Sequence[str]) -> Path:
    """Return the diffusers folder that `weights` names; what a hub id lacks here is fetched.

    Args:
        weights: a folder, or a hub id such as `Wan-AI/Wan2.2-TI2V-5B-Diffusers`.
        parts: the subfolders that are needed.

    Raises:
        UserError: no such folder, it lacks a part, or the hub does not give it.
    """
    path = path_of(weights)
    folder = path if path.is_dir() else _fetched_text(weights, parts)
    missing = [part for part in parts if not (folder / part).is_dir()]
    if missing:
        raise UserError(
            f"text encoder weights {weights} have no subfolder {missing[0]}: a diffusers folder "
            f"with {', '.join(parts)} is wanted"
        )
    return folder


def text_at_hand(weights: str, parts: Sequence[str]) -> bool:
    """Whether all parts are here, in the folder or in the hub's cache."""
    here: Path | None = path_of(weights)
    if not path_of(weights).is_dir():
        here = cached(weights, parts) if TEXT_HUB_ID.fullmatch(weights) else None
    return here is not None and all((here / part).is_dir() for part in parts)


def origin(weights: str, parts: Sequence[str]) -> str:
    """Return a short name of weights: a hub id as it is, a folder by a digest of what is in it.

    Weights are not loaded: of every tensor its name, type, shape and one row in the middle count.

    Raises:
        UserError: no such folder, it lacks a part, or it cannot be read.
    """
    if not path_of(weights).is_dir() and TEXT_HUB_ID.fullmatch(weights):
        return weights
    digest = hashlib.sha256()
    for part in parts:
        folder = located(weights, parts) / part
        config = folder / "config.json"
        marks = _model_marks(folder) if config.exists() else _file_marks(folder)
        digest.update(json.dumps([part, marks], sort_keys=True).encode())
    return digest.hexdigest()[:12]


def _fetched_text(weights: str, parts: Sequence[str]) -> Path:
    if not TEXT_HUB_ID.fullmatch(weights):
        raise UserError(
            f"text encoder weights {weights}: no such folder; name a diffusers folder with "
            f"{', '.join(parts)}, or a hub id (org/name)"
        )
    return download(weights, [f"{part}/{files}" for part in parts for files in TEXT_FETCHED])


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
    """Return the files of a tokenizer; its config's version numbers are left out."""
    names = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "merges.txt")
    found = [folder / name for name in names if (folder / name).exists()]
    return [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in found]
