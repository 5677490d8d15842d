"""What the text of `weights` names: a place on this disk, after a download where it needs one.

A diffusers pipeline or one of its folders, a folder of the original release, a single file, a hub
repository or a file in one, or weights that ship: `find_source` gives the same for all of them,
and `files.pretrained_model` loads it. Nothing else reads what users write there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor

from ...core.errors import UserError
from ...core.files import read_object
from ...core.registry import registry
from .hub import download, first_line

CHECKPOINT = "diffusers checkpoint (config.json and safetensors files)"
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
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
    """Give the place that `weights` names; what is on disk goes before the hub.

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
    """Give the path that users write, `~` for their home.

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
    """Give the folder that holds the model: this one, or one inside."""
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
    """Give the safetensors files of a source: one, or the shards that its index lists.

    Raises:
        UserError: there are none, or a shard is missing.
    """
    if source.path.is_file():
        return [source.path]
    if not (source.path / INDEX).exists():
        if not (source.path / WEIGHTS).exists():
            said = f"hold no safetensors files ({WEIGHTS}): this is no {CHECKPOINT}"
            raise UserError(f"weights {source.name} {said}")
        return [source.path / WEIGHTS]
    index = read_object(source.path / INDEX, CHECKPOINT, "weight_map")["weight_map"]
    shards = sorted({str(x) for x in index.values()}) if isinstance(index, dict) else []
    lost = [shard for shard in shards if not (source.path / shard).exists()]
    if lost or not shards:
        said = f"{len(lost)} of {len(shards)} shards, such as {lost[0]}" if lost else "all shards"
        raise UserError(f"weights {source.name} lack {said}: copy or download them again")
    return [source.path / shard for shard in shards]
