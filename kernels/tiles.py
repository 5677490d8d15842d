"""Which tile of work a program of a kernel takes: tables by architecture, in `configs/`.

A table says where it comes from: `aot`, chosen by what the compiler makes of it (kernels/aot.py),
or `measured` on such a card. Numbers do not depend on tiles but for the order of sums.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

FOLDER = Path(__file__).parent / "configs"
TABLES = {80: "sm_89", 86: "sm_89", 87: "sm_89", 89: "sm_89", 90: "sm_90", 100: "sm_90"}
NEWER = "sm_89"  # the smallest shared memory: sm_120 has as much
INTERPRETED = {"bm": 128, "bn": 64, "bk": 64, "warps": 4, "stages": 1}
FUSED = {"enable_fp_fusion": True}  # a·b + c rounds once; triton 3.10 no longer does so unasked
MOST_SHARES = 16
LEAST_STEPS = 8  # of a share


@frozen(kw_only=True)
class Tile:
    """One program's part of a matrix product, and how it is compiled.

    Attributes:
        bm: output cells.
        bn: output channels.
        bk: products that are summed at a step.
        warps: of 32 threads.
        stages: steps whose loads are under way at once.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int


def pick(
    arch: int, *, channels: int, outputs: int, rows: int, norm: bool, itemsize: int = 2
) -> Tile:
    """Return the tile of a conv.

    Args:
        arch: compute capability, such as 89; 0: the interpreter.
        channels: of the input.
        outputs: channels of the output; with `norm` the tile holds all of them.
        rows: output cells of all samples.
        norm: whether an RMSNorm over channels follows in the same program.
        itemsize: bytes of a number; a step of float32 holds half as many.
    """
    if arch == 0:
        tile = Tile(**INTERPRETED)
        return evolve(tile, bn=max(16, power_of_two(outputs))) if norm else tile
    table = read_table(TABLES.get(arch, NEWER))
    for line in table["conv3d_act"]:
        if (
            channels <= line.get("channels", channels)
            and outputs <= line.get("outputs", outputs)
            and rows <= line.get("rows", rows)
            and norm == line.get("norm", False)
        ):
            tile = Tile(**line["tile"])
            return evolve(tile, bk=max(16, tile.bk // 2)) if itemsize > 2 else tile
    raise AssertionError(f"the table of sm_{arch} has no last line")


def pick_tokens(arch: int, *, rows: int, itemsize: int = 2) -> Tile:
    """Return the tile of `out_tokens`; arguments as of `pick`, `rows` being tokens."""
    if arch == 0:
        return Tile(**INTERPRETED)
    lines = read_table(TABLES.get(arch, NEWER))["out_tokens"]
    tile = Tile(**next(line for line in lines if rows <= line.get("rows", rows))["tile"])
    return evolve(tile, bk=max(16, tile.bk // 2)) if itemsize > 2 else tile


@functools.cache
def pick_attention(arch: int, part: str, *, rows: int, head_width: int, itemsize: int = 2) -> Tile:
    """Return the tile of a kernel of `chunk_attention` that multiplies.

    Args:
        arch: as of `pick`.
        part: qkv, window or out. A tile of `window` has queries × cells that they see, and sums
            over a whole head, whatever the table says.
        rows: cells of all new frames.
        head_width: of a head.
        itemsize: as of `pick`; a step of float32 holds half as much.
    """
    if arch == 0:
        tile = Tile(**INTERPRETED)
    else:
        lines = read_table(TABLES.get(arch, NEWER))["chunk_attention"]
        own = (line for line in lines if line["part"] == part)
        tile = Tile(**next(line for line in own if rows <= line.get("rows", rows))["tile"])
    if part == "window":
        tile = evolve(tile, bk=max(16, power_of_two(head_width)))
        if itemsize > 2:  # wide heads of float32 fill the smallest shared memory in two stages
            tile = evolve(tile, bn=max(16, tile.bn // 2), stages=2 if tile.bk > 64 else tile.stages)
        return tile
    return evolve(tile, bk=max(16, tile.bk // 2)) if itemsize > 2 else tile


def shares(tiles: int, steps: int, processors: int) -> int:
    """Return into how many shares the steps of a tile are split so that no processor idles.

    A power of two, at most `MOST_SHARES`, each share of `LEAST_STEPS` steps or more.

    Args:
        tiles: programs without a split.
        steps: of each of them.
        processors: of the device.
    """
    count = 1
    while (
        count < MOST_SHARES
        and tiles * count * 2 <= processors
        and steps // (count * 2) >= LEAST_STEPS
    ):
        count *= 2
    return count


@functools.cache
def read_table(name: str) -> dict[str, Any]:
    """Return a table of `configs/`: where it is from, and lines; the first match wins."""
    table: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return table


def power_of_two(n: int) -> int:
    """Return the least power of two that is n or more."""
    return 1 << max(n - 1, 0).bit_length()
