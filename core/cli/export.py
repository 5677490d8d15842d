"""`longtake export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from ..export import Export, ExportedFile

NAMES = {
    "lora": "LoRA",
    "high": "LoRA of the high-noise expert",
    "low": "LoRA of the low-noise expert (in diffusers: load_into_transformer_2=True)",
    "memory": "the memory's encoder",
    "bundle": "LoRA, and the memory's encoder under `memory.`",
}


def export(
    run: o.RunArg,
    to: Annotated[
        str, typer.Option(help="keys of: diffusers, comfyui or kohya (also musubi-tuner)")
    ],
    out: Annotated[Path, o.out_option("the .safetensors file")],
    split: Annotated[
        bool | None,
        typer.Option(
            "--split/--bundle",
            help="LoRA and encoder in two files, or in one; default: two for diffusers, else one",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as in the run")
    ] = None,
    as_json: o.Json = False,
) -> None:
    """Write a run's LoRA by the keys of another program, and its encoder beside them.

    Example: longtake export tiny-wan-2x2x2 --to comfyui --out memory.safetensors
    """
    from ..errors import UserError
    from ..export import DTYPES
    from ..export import export as write
    from ..interfaces.backbone import LAYOUTS

    if to not in LAYOUTS:
        raise UserError(f"--to {to}: one of {', '.join(LAYOUTS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: one of {', '.join(DTYPES)}")
    exported = write(o.find_run(run), to, out, split=split, dtype=dtype)
    o.print_result(summary(exported), lines(exported), as_json=as_json)


def summary(exported: Export) -> dict[str, Any]:
    """Return the result as plain data."""
    keys = ("layout", "rank", "alpha")
    loras = [{key: file.facts[key] for key in keys} for file in exported.files if file.facts]
    return {
        "files": {file.name: str(file.path) for file in exported.files},
        "checkpoint": str(exported.checkpoint),
        "base": None if exported.base is None else str(exported.base),
        "lora": loras[0] if loras else None,
        "rates": exported.header["rates"],
        "beside": _other_loras(exported),
    }


def lines(exported: Export) -> list[str]:
    """Return the result as lines to read: each file, and what must be loaded with it."""
    result = [f"{file.path}: {_describe(file)}" for file in exported.files]
    names = {file.name for file in exported.files}
    if "lora" in names and "memory" in names:
        result.append("two files, because diffusers refuses a LoRA file that holds anything else")
    if "bundle" in names:
        result.append("diffusers refuses a LoRA file that holds anything else: for it, --split")
    if exported.base is not None:
        base = exported.base
        result.append(f"the DiT was trained whole: its base is a diffusers checkpoint, {base}")
    if others := _other_loras(exported):
        result.append(f"it trained beside {', '.join(others)}: load these with it")
    return result


def _describe(file: ExportedFile) -> str:
    if not file.facts:
        return NAMES[file.name]
    layout, rank, alpha = (file.facts[key] for key in ("layout", "rank", "alpha"))
    return f"{NAMES[file.name]}; keys of {layout}, rank {rank}, alpha {alpha:g}"


def _other_loras(exported: Export) -> list[str]:
    """Return the LoRA files that the DiT had besides the one that was trained."""
    loras: list[str] = exported.header["experiment"]["backbone"].get("loras", [])
    return loras
