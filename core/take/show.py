"""What `longtake show TAKE` says: segments, what they were made of, what is still to make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..tools.words import counted
from .folder import TakeFolder
from .order import Entry, Order


def describe_take(root: Path) -> dict[str, Any]:
    """Return a take as plain data: what it is made with, and a row a segment.

    Raises:
        UserError: it is no take, or is damaged.
    """
    folder = TakeFolder.open(root)
    order, spec = folder.order(), folder.spec
    rows = [_row(folder, order, number) for number in range(1, len(order.entries) + 1)]
    _say_past(folder, order, rows)
    made = sum(row["latents"] for row in rows if row["id"] is not None)
    source = sum(row["latents"] for row in rows if row["source"])
    return {
        "take": str(root),
        "run": spec["run"],
        "checkpoint": spec["checkpoint"],
        "encoder": spec["identity"].get("encoder"),
        "size": f"{spec['size'][1]}x{spec['size'][0]}",
        "fps": spec["fps"],
        "seed": spec["seed"],
        "threads": spec.get("threads"),
        "seconds": _frames(spec, 0, made) / folder.fps if made else 0.0,
        "source_seconds": _frames(spec, 0, source) / folder.fps if source else 0.0,
        "to_make": sum(row["id"] is None for row in rows),
        "segments": rows,
    }


def _frames(spec: dict[str, Any], first: int, count: int) -> int:
    stride = int(spec["stride"])
    return count * stride - (0 if first else stride - 1)


def _row(folder: TakeFolder, order: Order, number: int) -> dict[str, Any]:
    entry: Entry = order.entries[number - 1]
    first, spec = order.first(number), folder.spec
    begin = _frames(spec, 0, first) if first else 0
    frames = _frames(spec, first, entry.latents)
    row: dict[str, Any] = {
        "segment": number, "id": entry.id, "source": entry.source, "section": entry.section,
        "start": begin / folder.fps, "end": (begin + frames) / folder.fps, "frames": frames,
        "latents": entry.latents, "prompt": entry.prompt, "negative": entry.negative,
        "seed": entry.seed, "cut": entry.cut, "memory": entry.memory, "steps": entry.steps,
        "guidance": entry.guidance, "loras": [text for text, _ in entry.loras],
        "asked": [entry.start, entry.end], "fault": "", "other_past": False,
    }  # fmt: skip
    if entry.id is not None:
        try:
            stored = folder.segment_of(order, number)
            row |= {"seconds": stored.made.get("seconds"), "tokens": stored.made.get("tokens")}
        except UserError as error:
            row["fault"] = str(error)
    return row


def _say_past(folder: TakeFolder, order: Order, rows: list[dict[str, Any]]) -> None:
    """Mark segments that were made under another past than the one that they have now."""
    hashes: list[str] = []
    for number, row in enumerate(rows, start=1):
        if row["id"] is None or row["fault"]:
            return
        stored = folder.segment(row["id"], number)
        row["other_past"] = stored.recipe.get("past") != folder.chain(hashes)
        hashes.append(stored.latents_hash)


def lines_of(data: dict[str, Any]) -> list[str]:
    """Return a described take to read."""
    lines = [
        f"{data['take']}: {data['size']} at {data['fps']:g} fps, {data['seconds']:.2f} s made"
        + (f", {data['source_seconds']:.2f} s of them given" if data["source_seconds"] else ""),
        f"run {data['run']} ({data['checkpoint']}), encoder {data['encoder']}, "
        f"seed {data['seed']}, {data['threads']} threads",
    ]
    for row in data["segments"]:
        lines.append(_line(row))
        if row["fault"]:
            lines.append(f"     {row['fault']}")
    if data["to_make"]:
        lines.append(f"{data['to_make']} to make: longtake generate --out {data['take']} goes on")
    return lines


def _line(row: dict[str, Any]) -> str:
    what = "given" if row["source"] else f"{row['prompt']!r}, seed {row['seed']}"
    marks = [
        *(["cut"] if row["cut"] else []),
        *([f"memory {row['memory']}"] if row["memory"] != "all" else []),
        *(f"{key} {row[key]}" for key in ("steps", "guidance") if row[key] is not None),
        *(f"lora {lora}" for lora in row["loras"]),
        *(["made under another past"] if row["other_past"] else []),
        *(["to make"] if row["id"] is None else []),
    ]
    return (
        f"{row['segment']:4d}  {row['start']:7.2f}-{row['end']:.2f} s  "
        f"{counted(row['frames'], 'frame')}  {what}{''.join(f'; {mark}' for mark in marks)}"
    )
