"""Export of a run: its LoRA in the keys of other programs, its encoder beside them.

A bundle is one safetensors file: LoRA by another program's keys, the encoder (and attention to
features) under `memory.`, and a header with all that they fit. diffusers refuses a LoRA file that
holds anything else, so for it the two go into two files; so do the LoRAs of two experts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from . import config
from .errors import UserError
from .experiment import Experiment
from .interfaces.backbone import LoraFile
from .model import compressor_needs
from .registry import registry
from .tools.files import check_out_file, open_tensors, whole_file
from .train.checkpoint import older_offered, read_encoder, read_run, step_of

DTYPES = ("float32", "bfloat16", "float16")


@frozen(kw_only=True)
class ExportedFile:
    """One file of an export.

    Attributes:
        name: `lora`, `memory`, `bundle` (both), or `high` and `low`, the LoRAs of two experts.
        path: where it is.
        facts: its LoRA's (`LoraFile.facts`); empty where it has none.
    """

    name: str
    path: Path
    facts: Mapping[str, Any]


@frozen(kw_only=True)
class Export:
    """What an export wrote.

    Attributes:
        files: all that were written.
        header: what each of them says of itself.
        checkpoint: the one of the run that was exported.
        base: where the DiT's weights are, if the run trained all of it.
    """

    files: tuple[ExportedFile, ...]
    header: Mapping[str, Any]
    checkpoint: Path
    base: Path | None


def export(
    run: Path, layout: str, out: Path, *, split: bool | None = None, dtype: str | None = None
) -> Export:
    """Write the LoRA and the encoder of a run's newest checkpoint, all of it or nothing.

    A file that is there is replaced only where it is an earlier export.

    Args:
        run: a run, a checkpoint, or a folder of weights that ship.
        layout: of `core.interfaces.backbone.LAYOUTS`.
        out: the safetensors file; of several, the names begin with it.
        split: LoRA and encoder in two files; None: where `layout` needs it.
        dtype: number type of the weights, of `DTYPES`; None: as in the run.

    Raises:
        UserError: there is no run, it holds neither encoder nor LoRA, or one that this layout has
            no names for; `out` is no name of a safetensors file, cannot be written, or is there
            and no export.
    """
    if out.suffix != ".safetensors":
        raise UserError(f"--out {out}: name a file that ends in .safetensors")
    check_out_file(out)
    if run.is_file():
        raise UserError(f"{run} is exported already: name the run that it is of")
    experiment, checkpoint = read_run(run)
    with older_offered(checkpoint):
        loras = _loras(experiment, checkpoint, layout)
        encoder, header = _encoder(experiment, checkpoint)
    if dtype is None:
        loras = {expert: _as_trained(lora) for expert, lora in loras.items()}
    header |= _run_header(experiment, checkpoint)
    besides = [lora.besides for lora in loras.values()]
    memory = LoraFile(tensors=encoder | {name: x for part in besides for name, x in part.items()})
    base = checkpoint / "backbone"
    contents = _contents(loras, memory, apart=layout == "diffusers" if split is None else split)
    if not contents:
        raise UserError(f"{run} holds no encoder and no LoRA: {base} is a diffusers checkpoint")
    files = [
        ExportedFile(name=name, path=_place(out, name, contents), facts=content.facts)
        for name, content in contents.items()
    ]
    for file in files:
        check_out_file(file.path, room=_bytes(contents[file.name], dtype))
        _check_replaceable(file.path)
    with ExitStack() as opened:  # all files come to be, or none
        for file in files:
            path = opened.enter_context(whole_file(file.path))
            _save(path, contents[file.name], header, dtype)
    return Export(
        files=tuple(files),
        header=header,
        checkpoint=checkpoint,
        base=base if base.is_dir() else None,
    )


def _loras(experiment: Experiment, checkpoint: Path, layout: str) -> dict[str, LoraFile]:
    """Return the adapters of a checkpoint in a layout, by expert; none where it has none."""
    path = checkpoint / "lora.safetensors"
    if experiment.train.trains != "lora" and not path.exists():
        return {}
    backbone = registry().load(experiment.backbone)
    loras: dict[str, LoraFile] = backbone.export_adapters(experiment.backbone, path, layout)
    return loras


def _as_trained(lora: LoraFile) -> LoraFile:
    """Return a LoRA in the number type that it was trained in."""
    tensors = {n: x.to(lora.dtype) if _is_weight(x) else x for n, x in lora.tensors.items()}
    return attrs.evolve(lora, tensors=tensors) if lora.dtype else lora


def _encoder(experiment: Experiment, checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the encoder's tensors and header; without an encoder, as much of one as there is."""
    if experiment.remembers:
        header, tensors = read_encoder(checkpoint / "memory.safetensors")
        return tensors, header
    backbone = config.to_json(experiment)["backbone"]["type"]
    return {}, {"format": 1, "stage": "base", "backbone": backbone}


def _run_header(experiment: Experiment, checkpoint: Path) -> dict[str, Any]:
    """Return what files say of their run, besides what an encoder's file says of itself."""
    return {
        "rates": sorted(str(rate) for rate in compressor_needs(experiment).rates),
        "step": step_of(checkpoint) if checkpoint.name.startswith("checkpoint-") else None,
        "experiment": without_local_paths(experiment),
    }


def without_local_paths(experiment: Experiment) -> dict[str, Any]:
    """Return the spec as plain data for files that people share, without this machine's folders."""
    data = config.to_json(experiment)
    backbone = data["backbone"]
    if isinstance(weights := backbone.get("weights"), str):
        backbone["weights"] = _without_folders(weights)
    if loras := backbone.get("loras"):
        backbone["loras"] = [_without_folders(text) for text in loras]
    return data


def _without_folders(text: str) -> str:
    return re.sub(r"(^|[,:])\s*[/~][^,:]*/", r"\1", text)  # `high:file` and `file,file` are legal


def _contents(
    loras: Mapping[str, LoraFile], memory: LoraFile, *, apart: bool
) -> dict[str, LoraFile]:
    """Return what goes into which file; a bundle's metadata is its LoRA's."""
    contents = {expert or "lora": lora for expert, lora in loras.items() if lora.tensors}
    if list(contents) == ["lora"] and memory.tensors and not apart:
        lora = contents["lora"]
        tensors = {**lora.tensors, **memory.tensors}
        return {"bundle": LoraFile(tensors=tensors, metadata=lora.metadata, facts=lora.facts)}
    return contents | ({"memory": memory} if memory.tensors else {})


def _place(out: Path, name: str, contents: Mapping[str, LoraFile]) -> Path:
    """Return the path of a file: `out` for the LoRA, or where it is the only one."""
    alone = name == "lora" or len(contents) == 1
    return out if alone else out.with_suffix(f".{name}.safetensors")


def _check_replaceable(path: Path) -> None:
    """Refuse to replace a file that is no export, such as one of a run: UserError."""
    if not path.exists():
        return
    try:
        with open_tensors(path) as file:
            header = json.loads((file.metadata() or {}).get("longtake", "null"))
    except (UserError, ValueError):
        header = None
    if not (isinstance(header, dict) and "hash" in header):
        raise UserError(f"--out {path} is there and no earlier export: name another file")


def _bytes(file: LoraFile, dtype: str | None) -> int:
    chosen = None if dtype is None else getattr(torch, dtype)
    sizes = (chosen.itemsize if chosen else x.element_size() for x in file.tensors.values())
    return sum(n * x.numel() for n, x in zip(sizes, file.tensors.values(), strict=True))


def _save(path: Path, file: LoraFile, header: Mapping[str, Any], dtype: str | None) -> None:
    from safetensors.torch import save_file

    chosen = None if dtype is None else getattr(torch, dtype)
    tensors = {
        name: (x.to(chosen) if chosen and _is_weight(x) else x).contiguous()
        for name, x in file.tensors.items()
    }
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()) and bool(file.tensors[name].isfinite().all()):
            raise UserError(f"--dtype {dtype} cannot hold {name}: take float32 or bfloat16")
    facts = {**header, "hash": digest(tensors)} | ({"lora": file.facts} if file.facts else {})
    text = json.dumps(facts, ensure_ascii=False)
    save_file(tensors, path, metadata={"format": "pt", **file.metadata, "longtake": text})


def _is_weight(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim > 0  # a lone number is an alpha


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of tensors' names, types and values, which tells two files apart."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return hashed.hexdigest()[:16]
