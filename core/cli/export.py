"""`longtake export`; light, since the door imports it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from ..export import Exported, Part


To = Annotated[str, typer.Option(help="keys of: diffusers, comfyui or kohya (also musubi-tuner)")]
Split = Annotated[
    bool | None,
    typer.Option(
        "--split/--bundle",
        help="LoRA and encoder in two files, or in one; default: two for diffusers, else one",
        show_default=False,
    ),
]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16; default: as in the run")
]
NAMES = {
    "lora": "LoRA",
    "high": "LoRA of the high-noise expert",
    "low": "LoRA of the low-noise expert (in diffusers: load_into_transformer_2=True)",
    "memory": "the memory's encoder",
    "bundle": "LoRA, and the memory's encoder under `memory.`",
}


def export(
    run: o.RunArg,
    to: To,
    out: Annotated[Path, o.out("the .safetensors file")],
    split: Split = None,
    dtype: Dtype = None,
    as_json: o.Json = False,
) -> None:
    """Write a run's LoRA by the keys of another program, and its encoder beside them.

    Example: longtake export tiny-wan-2x2x2 --to comfyui --out memory.safetensors
    """
    from ..errors import UserError
    from ..export import DTYPES
    from ..export import export as write
    from ..interfaces.backbone import LAYOUTS
    from .options import emit, find_run

    if to not in LAYOUTS:
        raise UserError(f"--to {to}: one of {', '.join(LAYOUTS)}")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: one of {', '.join(DTYPES)}")
    done = write(find_run(run), to, out, split=split, dtype=dtype)
    emit(summary(done), lines(done), as_json=as_json)


def summary(done: Exported) -> dict[str, Any]:
    """Return the result as plain data."""
    keys = ("layout", "rank", "alpha")
    loras = [{key: part.facts[key] for key in keys} for part in done.parts if part.facts]
    return {
        "files": {part.name: str(part.path) for part in done.parts},
        "checkpoint": str(done.checkpoint),
        "base": None if done.base is None else str(done.base),
        "lora": loras[0] if loras else None,
        "rates": done.header["rates"],
        "beside": _beside(done),
    }


def lines(done: Exported) -> list[str]:
    """Return the result to read."""
    found = [f"{part.path}: {_said(part)}" for part in done.parts]
    names = {part.name for part in done.parts}
    if "lora" in names and "memory" in names:
        found.append("two files, because diffusers refuses a LoRA file that holds anything else")
    if "bundle" in names:
        found.append("diffusers refuses a LoRA file that holds anything else: for it, --split")
    if done.base is not None:
        found.append(f"the DiT was trained whole: its base is a diffusers checkpoint, {done.base}")
    if beside := _beside(done):
        found.append(f"it trained beside {', '.join(beside)}: load these with it")
    return found


def _said(part: Part) -> str:
    if not part.facts:
        return NAMES[part.name]
    layout, rank, alpha = (part.facts[key] for key in ("layout", "rank", "alpha"))
    return f"{NAMES[part.name]}; keys of {layout}, rank {rank}, alpha {alpha:g}"


def _beside(done: Exported) -> list[str]:
    found: list[str] = done.header["experiment"]["backbone"].get("loras", [])
    return found
