"""What the compiler makes of every kernel and tile, for GPUs that are not here.

    python -m longtake.kernels.aot                 the gate: sm_89 and sm_90
    python -m longtake.kernels.aot --all           also sm_80, 86, 120 and AMD's gfx942
    python -m longtake.kernels.aot --all --write   keep what was found in configs/compiled.json
    python -m longtake.kernels.aot --all --limits  take it as the measure: configs/limits.json

A kernel passes that fits into shared memory, keeps no register in memory, multiplies on tensor
units, and whose main loop has no more synchronous loads and instructions beside the products than
`limits.json` allows: a tenth more than what the compiler made of it when that was written. Results
are kept by a hash of the kernels' text, the case, the tile, the target and triton's version: what
has not changed is not compiled again. Never in one process with triton's interpreter.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen

from .chunk_attention import norm_blocks
from .conv3d_act import FUSED_NORM, merges
from .tiles import FOLDER, FUSED, Tile, pick, pick_attention, pick_tokens, power_of_two

KEPT = FOLDER / "compiled.json"
LIMITS = FOLDER / "limits.json"
MARGIN = 1.1  # of limits, over what the compiler made when they were written
CONV, TOKENS, ATTENTION_TEXT, PRODUCTS = (
    Path(__file__).parent / f"{name}_jit.py"
    for name in ("conv3d_act", "out_tokens", "chunk_attention", "products")
)
TEXTS = {  # that the compiler reads, of each kind of case
    "conv": (CONV,), "sums": (CONV,), "tokens": (TOKENS, PRODUCTS),
    **dict.fromkeys(("norm", "qkv", "window", "out"), (ATTENTION_TEXT, PRODUCTS)),
}  # fmt: skip
READING = "2"  # of what is compiled; another number where it is read otherwise
BY_THE_WAY = ("broken", "faults")  # of a row; not kept
GATED = ("sm_89", "sm_90")
TARGETS = (*GATED, "sm_80", "sm_86", "sm_120", "gfx942")
KIB = 1024
GEFORCE = ("sm_86", "sm_89", "sm_120")  # sums in float16 are faster there
SHARED = {  # bytes that a block may have
    "sm_80": 163 * KIB, "sm_86": 99 * KIB, "sm_89": 99 * KIB, "sm_90": 227 * KIB,
    "sm_120": 99 * KIB, "gfx942": 64 * KIB,
}  # fmt: skip
MOST_ISSUE = {  # instructions of the main loop a cycle of the tensor unit; asked of a new kernel
    "sm_80": 1.6, "sm_86": 0.4, "sm_89": 0.4, "sm_90": 0.7, "sm_120": 0.4,
}  # fmt: skip
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}

Triple = tuple[int, int, int]


@frozen(kw_only=True)
class Case:
    """A kernel to compile for a layer.

    Attributes:
        name: of the layer.
        kind: conv; sums, the kernel that adds the shares of one; tokens, `out_tokens`; or norm,
            qkv, window and out, the four of `chunk_attention`.
        channels, outputs: of the conv; of tokens, of features and tokens; of attention, of features
            and of all heads.
        kernel, stride: in time, height and width.
        rows: output cells, which decide the tile.
        norm: with RMSNorm.
        half_sums: summed in float16.
        dtype: bf16, fp16 or fp32.
        split: shares of the sums; more than 1: an append's small conv.
        lr: channels of the LR latents of tokens, whose patch is 2×2.
        head_width: of the heads of attention.
        cells: of a memory frame, of attention.
        window: memory frames that attention sees.
        targets: where `launch` would run it.
    """

    name: str
    kind: str = "conv"
    channels: int
    outputs: int
    kernel: Triple = (3, 3, 3)
    stride: Triple = (1, 1, 1)
    rows: int = 100_000
    norm: bool = False
    half_sums: bool = False
    dtype: str = "bf16"
    split: int = 1
    lr: int = 16
    head_width: int = 64
    cells: int = 104
    window: int = 4
    targets: tuple[str, ...] = TARGETS


S122 = (1, 2, 2)
ATTENTION = ("qkv", "window", "out")
PLAIN = ("sums", "norm")  # multiply nothing
CASES = (
    Case(name="in 16→64", channels=16, outputs=64, rows=755_040),
    Case(name="in 48→64", channels=48, outputs=64, rows=188_760),
    Case(name="time 64→128", channels=64, outputs=128, stride=(2, 1, 1), rows=380_640),
    Case(name="space 128→256", channels=128, outputs=256, stride=S122, rows=95_160),
    Case(name="space 256→512", channels=256, outputs=512, stride=S122, rows=23_790),
    Case(name="space 512→512", channels=512, outputs=512, stride=S122, rows=6_344),
    Case(name="append 512→512", channels=512, outputs=512, stride=S122, rows=312, split=4),
    Case(name="append, sums", channels=512, outputs=512, rows=312, split=4, kind="sums"),
    Case(name="kernel 4 128→256", channels=128, outputs=256, kernel=(3, 4, 4), stride=S122),
    Case(name="norm 16→64", channels=16, outputs=64, norm=True),
    Case(name="norm 64→128", channels=64, outputs=128, stride=(2, 1, 1), norm=True),
    Case(name="norm 128→256", channels=128, outputs=256, stride=S122, norm=True),
    Case(
        name="fp16 sums 256→512", channels=256, outputs=512, stride=S122,
        dtype="fp16", half_sums=True, targets=GEFORCE,
    ),
    Case(name="tf32 64→128", channels=64, outputs=128, stride=(2, 1, 1), dtype="fp32"),
    Case(name="tokens 512→5120", kind="tokens", channels=512, outputs=5120, rows=6_344),
    Case(name="tokens 512→3072", kind="tokens", channels=512, outputs=3072, rows=312, lr=48),
    Case(name="attention, norm", kind="norm", channels=512, outputs=512, rows=312),
    *(
        Case(
            name=f"attention, {kind}{' in tf32' if dtype == 'fp32' else ''}", kind=kind,
            channels=512, outputs=512, rows=312, dtype=dtype,
        )
        for dtype in ("bf16", "fp32")
        for kind in ATTENTION
    ),
    *(
        Case(
            name=f"attention, {kind} of 15×26", kind=kind, channels=512, outputs=512, rows=1170,
            cells=390,
        )
        for kind in ("norm", *ATTENTION)
    ),
    *(
        Case(
            name=f"attention, window, heads of 128{' in tf32' if dtype == 'fp32' else ''}",
            kind="window", channels=512, outputs=512, head_width=128, dtype=dtype,
        )
        for dtype in ("bf16", "fp32")
    ),
)  # fmt: skip


@frozen(kw_only=True)
class Limit:
    """What the main loop of a compiled kernel may have at most.

    Attributes:
        loads: synchronous loads from global memory.
        issue: instructions a cycle of the tensor unit.
    """

    loads: int
    issue: float

    @classmethod
    def over(cls, found: Resources) -> Limit:
        """Return a tenth more than a kernel has, `issue` rounded up to thousandths."""
        return cls(
            loads=math.floor(found.loads * MARGIN),
            issue=math.ceil(round(found.issue * MARGIN * 1000, 6)) / 1000,
        )


@frozen(kw_only=True)
class Resources:
    """What a compiled kernel needs.

    Attributes:
        shared: bytes of shared memory a block.
        registers: of a thread.
        spills: loads and stores of registers that did not fit, in the whole kernel.
        products: tensor instructions in the main loop.
        loads: synchronous loads from global memory in the main loop.
        issue: instructions of the main loop a cycle that its products keep the tensor unit busy;
            of the whole kernel where the compiler unrolled the loop; 0 where there are none.
    """

    shared: int
    registers: int
    spills: int
    products: int
    loads: int
    issue: float


def tile_of(case: Case, target: str) -> Tile:
    """Return the tile that `launch` takes for a case; AMD's, which never runs, as sm_89's."""
    arch = int(target[3:]) if target.startswith("sm_") else 89
    itemsize = 4 if case.dtype == "fp32" else 2
    if case.kind == "tokens":
        return pick_tokens(arch, rows=case.rows, itemsize=itemsize)
    if case.kind in ATTENTION:
        return pick_attention(
            arch, case.kind, rows=case.rows, head_width=case.head_width, itemsize=itemsize
        )
    return pick(
        arch, channels=case.channels, outputs=case.outputs, rows=case.rows,
        norm=case.norm and case.split == 1 and case.outputs <= FUSED_NORM, itemsize=itemsize,
    )  # fmt: skip


def key_of(case: Case, target: str) -> str:
    """Return the hash of all that decides what the compiler makes of a case."""
    parts = (
        *(text.read_text(encoding="utf-8") for text in TEXTS[case.kind]), READING, repr(case),
        repr(tile_of(case, target)), target, version("triton"),
    )  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@functools.cache
def limits() -> dict[tuple[str, str], Limit]:
    """Return the limits of `limits.json`, by the case's name and the target."""
    found = json.loads(LIMITS.read_text(encoding="utf-8")) if LIMITS.is_file() else {"limits": []}
    return {
        (line["case"], line["target"]): Limit(loads=line["loads"], issue=line["issue"])
        for line in found["limits"]
    }


def limit_of(case: Case, target: str) -> Limit:
    """Return the limit of a case on a target: its own; of a new one, that of all."""
    general = Limit(loads=0, issue=MOST_ISSUE.get(target, math.inf))
    return limits().get((case.name, target), general)


def broken(case: Case, target: str, found: Resources) -> list[str]:
    """Return what no compiled case may have, whatever its limits say, in words."""
    wrong = []
    if found.shared > SHARED[target]:
        wrong.append(f"{found.shared} bytes of shared memory, at most {SHARED[target]}")
    if found.spills:
        wrong.append(f"{found.spills} loads or stores of spilled registers")
    if case.kind not in PLAIN and not found.products:
        wrong.append("no tensor instruction")
    return wrong


def faults(case: Case, target: str, found: Resources) -> list[str]:
    """Return what is wrong with a compiled case, in words: broken, or beyond its limits."""
    wrong, most = broken(case, target, found), limit_of(case, target)
    if found.loads > most.loads:
        wrong.append(f"{found.loads} synchronous loads in the main loop, at most {most.loads}")
    if found.issue > most.issue:
        wrong.append(f"{found.issue} instructions a tensor cycle, at most {most.issue}")
    return wrong


def kept() -> dict[str, dict[str, Any]]:
    """Return the results that are kept, by key."""
    if not KEPT.is_file():
        return {}
    rows: list[dict[str, Any]] = json.loads(KEPT.read_text(encoding="utf-8"))["compiled"]
    return {row["key"]: row for row in rows}


def kept_by() -> str:
    """Return the version of triton that the results which are kept are of; "" where none are."""
    if not KEPT.is_file():
        return ""
    return str(json.loads(KEPT.read_text(encoding="utf-8"))["triton"])


def keep(rows: Iterable[dict[str, Any]]) -> None:
    """Keep results among those that are, in the order of the cases; what is out of date goes."""
    new = [{k: v for k, v in row.items() if k not in BY_THE_WAY} for row in rows]
    found = kept() | {row["key"]: row for row in new}
    current = [key_of(case, target) for case in CASES for target in case.targets]
    _write_table(KEPT, "compiled", [found[key] for key in current if key in found])


def keep_limits(rows: Iterable[dict[str, Any]]) -> None:
    """Take compiled cases as the measure of later ones; limits of other cases stay."""
    new = {(row["case"], row["target"]): Limit.over(Resources(**row["resources"])) for row in rows}
    found = limits() | new
    current = [(case.name, target) for case in CASES for target in case.targets]
    lines = [
        {"case": case, "target": target, **attrs.asdict(found[case, target])}
        for case, target in current
        if (case, target) in found
    ]
    _write_table(LIMITS, "limits", lines)
    limits.cache_clear()


def _write_table(path: Path, name: str, lines: Sequence[dict[str, Any]]) -> None:
    text = ",\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    head = f'"triton": "{version("triton")}"'
    path.write_text(f'{{{head}, "{name}": [\n{text}\n]}}\n', encoding="utf-8")


def resources(case: Case, target: str, *, fresh: bool = False) -> Resources:
    """Return what a case needs on a target: what is kept, else (or `fresh`) compiled now."""
    row = None if fresh else kept().get(key_of(case, target))
    return compiled(case, target) if row is None else Resources(**row["resources"])


def compiled(case: Case, target: str) -> Resources:
    """Compile a case for a target and read what came out.

    Raises:
        RuntimeError: this process runs triton's interpreter.
    """
    from triton import compile as triton_compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    tile = tile_of(case, target)
    kernel, constants, warps = _kernel(case, tile)
    if not isinstance(kernel, JITFunction):
        raise RuntimeError("kernels do not compile under TRITON_INTERPRET=1")
    names = kernel.arg_names
    partial = case.split > 1
    wide = {"sums_ptr"} | ({"out_ptr"} if partial and case.kind == "conv" else set())

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name.endswith("_ptr"):
            return "*fp32" if name in wide else f"*{case.dtype}"
        return "fp32" if name in ("EPS", "SCALE") else "i32"

    # multiples of 16 at run time, too
    whole = {"x_batch", "x_frame", "out_batch", "out_first", "lr_batch", "lr_channel", "lr_frame"}
    aligned = [i for i, name in enumerate(names) if name.endswith("_ptr") or name in whole]
    source = ASTSource(
        kernel,
        {name: kind(name) for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    nvidia = target.startswith("sm_")
    gpu = GPUTarget("cuda", int(target[3:]), 32) if nvidia else GPUTarget("hip", target, 64)
    options = {"num_warps": warps, "num_stages": tile.stages if nvidia else 2, **FUSED}
    made = triton_compile(source, target=gpu, options=options)
    shared = int(made.metadata.shared)
    if not nvidia:
        return read_amd(made.asm["amdgcn"], shared)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        text = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+)", usage)
    return read_sass(text, shared, int(found[1]) if found else 0, target)


def _kernel(case: Case, tile: Tile) -> tuple[Any, dict[str, Any], int]:
    """Return the kernel of a case, its constants and its warps."""
    from . import chunk_attention_jit, conv3d_act_jit, out_tokens_jit

    if case.kind == "sums":
        return conv3d_act_jit.conv3d_finish_kernel, _sums(case), 4
    if case.kind == "tokens":
        return out_tokens_jit.out_tokens_kernel, _tokens(case, tile), tile.warps
    if case.kind == "norm":
        sizes = {"C": case.channels, "E": case.outputs, "S": case.cells}
        blocks = norm_blocks(case.channels, case.outputs)
        return chunk_attention_jit.norm_past_kernel, sizes | blocks, 4
    if case.kind in ATTENTION:
        kernels = {
            "qkv": chunk_attention_jit.qkv_kernel,
            "window": chunk_attention_jit.window_attention_kernel,
            "out": chunk_attention_jit.attention_out_kernel,
        }
        return kernels[case.kind], _attention(case, tile), tile.warps
    return conv3d_act_jit.conv3d_act_kernel, _conv(case, tile), tile.warps


def _conv(case: Case, tile: Tile) -> dict[str, Any]:
    kt, kh, kw = case.kernel
    st, sh, sw = case.stride
    return {
        "C": case.channels, "N": case.outputs, "KT": kt, "KH": kh, "KW": kw,
        "ST": st, "SH": sh, "SW": sw,
        "NORM": case.norm and case.split == 1, "ACTIVATION": True, "HALF_SUMS": case.half_sums,
        "MERGE": merges(case.channels, kw, tile.bk), "SPLIT": case.split,
        "PARTIAL": case.split > 1, "PRECISION": "tf32", "UPCAST": False,
        "BM": tile.bm, "BN": tile.bn, "BK": tile.bk,
    }  # fmt: skip


def _tokens(case: Case, tile: Tile) -> dict[str, Any]:
    return {
        "C": case.channels, "D": case.outputs, "L": case.lr, "PH": 2, "PW": 2,
        "PRECISION": "tf32", "UPCAST": False, "BM": tile.bm, "BN": tile.bn, "BK": tile.bk,
    }  # fmt: skip


def _attention(case: Case, tile: Tile) -> dict[str, Any]:
    inner = case.outputs
    size = {"E": inner, "PRECISION": "tf32", "UPCAST": False, "BM": tile.bm, "BN": tile.bn}
    if case.kind == "window":
        own = {"D": case.head_width, "S": case.cells, "WINDOW": case.window, "BD": tile.bk}
    else:
        own = {"C": case.channels, "BK": tile.bk}
    if case.kind == "qkv":
        own["S"] = case.cells
    return size | own


def _sums(case: Case) -> dict[str, Any]:
    wide = power_of_two(case.outputs)
    return {
        "N": case.outputs, "SPLIT": case.split, "NORM": True, "ACTIVATION": True,
        "BM": max(1, 2048 // wide), "BN": wide,
    }  # fmt: skip


def _tool(name: str, *arguments: str) -> str:
    """Return what a program of CUDA's prints that comes with triton.

    Raises:
        RuntimeError: it failed.
        OSError: it is not there.
    """
    from triton.backends import nvidia

    program = Path(nvidia.__path__[0]) / "bin" / name
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def read_sass(text: str, shared: int, registers: int, target: str) -> Resources:
    """Return the resources of a kernel as nvdisasm prints it."""
    lines = list(_instructions(text))
    loop = main_loop(text)
    products = [line for line in loop if _busy(line, target)]
    busy = sum(_busy(line, target) for line in products)
    return Resources(
        shared=shared,
        registers=registers,
        spills=sum(bool(re.search(r"\b(LDL|STL)\b", line)) for line in lines),
        products=len(products),
        loads=sum(bool(re.search(r"\bLDG\.", line)) for line in loop) if products else 0,
        issue=round(len(loop) / busy, 3) if busy else 0.0,
    )


def main_loop(text: str) -> list[str]:
    """Return the instructions of the loop with the most products; all, where none is in a loop."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    loops: list[list[str]] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif _is_instruction(line):
            lines.append(line)
            back = re.search(r"BRA.*\((\.L_x_\d+)\)", line)
            if back and back[1] in labels:
                loops.append(lines[labels[back[1]] :])
    multiply = [(sum(map(_multiplies, loop)), -len(loop), loop) for loop in loops]
    best = max(multiply, key=lambda one: one[:2], default=(0, 0, lines))
    return best[2] if best[0] else lines


def _instructions(text: str) -> Iterator[str]:
    return (line for line in text.splitlines() if _is_instruction(line))


def _is_instruction(line: str) -> bool:
    return bool(re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+\S", line))


def _multiplies(line: str) -> bool:
    return bool(re.search(r"\b(HMMA|HGMMA|UTCHMMA)\b", line))


def _busy(line: str, target: str) -> int:
    """Return the cycles that an instruction holds its tensor unit; 0 where it is no product."""
    if hopper := re.search(r"HGMMA\.64x(\d+)x\d+", line):
        return int(hopper[1]) // 2
    if re.search(r"\bHMMA\.", line):
        # GeForce sums in float32 at half the rate; an H100's older instruction is no faster than
        # an A100's
        whole = 8 if target in ("sm_80", "sm_90") else 32
        return whole // 2 if re.search(r"HMMA\.\d+\.F16\b", line) and whole == 32 else whole
    return 0


def read_amd(text: str, shared: int) -> Resources:
    """Return the resources of a kernel as AMD's assembler text says them."""

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(found[1]) if found else 0

    return Resources(
        shared=shared,
        registers=number("vgpr_count"),
        spills=number("vgpr_spill_count"),
        products=len(re.findall(r"\bv_(?:mfma|wmma)", text)),
        loads=0,
        issue=0.0,
    )


def rows(targets: Iterable[str], *, fresh: bool) -> Iterator[dict[str, Any]]:
    """Yield every case on every target: what it needs, what is wrong, and whether it is broken.

    Of a case that does not compile `resources` are None, and why is its fault.
    """
    for case in CASES:
        for target in (t for t in targets if t in case.targets):
            found = None
            try:
                found = resources(case, target, fresh=fresh)
                wrong = faults(case, target, found)
            except _compile_errors() as error:
                wrong = [f"does not compile: {_reason(error)}"]
            yield {
                "key": key_of(case, target), "case": case.name, "target": target,
                "tile": attrs.asdict(tile_of(case, target)),
                "resources": None if found is None else attrs.asdict(found),
                "broken": found is None or bool(broken(case, target, found)), "faults": wrong,
            }  # fmt: skip


def _compile_errors() -> tuple[type[Exception], ...]:
    """Return what is raised where triton, its assembler or a program of CUDA's fails."""
    from triton.errors import TritonError

    return (TritonError, RuntimeError, OSError)


def _reason(error: Exception) -> str:
    """Return the line of an error that says most: what the assembler says, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if re.search(r"\b(fatal|error)\s+:", line)), None)
    return told or (lines[0] if lines else type(error).__name__)


def line_of(row: dict[str, Any]) -> str:
    """Return a row of the table as text."""
    found, tile = row["resources"], row["tile"]
    size = f"{tile['bm']}×{tile['bn']}×{tile['bk']} {tile['warps']}/{tile['stages']}"
    wrong = f"  ! {'; '.join(row['faults'])}" if row["faults"] else ""
    head = f"{row['case']:<39} {row['target']:<7} {size:<16}"
    if found is None:
        return head + wrong
    return (
        f"{head} {found['shared'] / KIB:6.1f} KiB "
        f"{found['registers']:4} regs {found['spills']:3} spills {found['products']:4} products "
        f"{found['loads']:3} loads  issue {found['issue']:.3f}{wrong}"
    )


def summary(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line a target: how many kernels pass there, and why others do not compile."""
    for target in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == target]
        failed = [row for row in own if row["faults"]]
        count = f"{len(own) - len(failed)} of {len(own)} pass"
        beyond = sum(not row["broken"] for row in failed)
        more = f", {beyond} only beyond their limits" if beyond else ""
        whys = dict.fromkeys(row["faults"][0] for row in failed if row["resources"] is None)
        why = "".join(f"; {why}" for why in whys)
        yield f"{target:<7} {count}{more}; {SHARED[target] // KIB} KiB of shared memory{why}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, and what passes by target; return 1 where something is wrong, else 0."""
    parser = argparse.ArgumentParser(prog="python -m longtake.kernels.aot")
    parser.add_argument("--all", action="store_true", help="all targets, not only those gated")
    parser.add_argument("--fresh", action="store_true", help="compile what is kept, too")
    parser.add_argument("--write", action="store_true", help="keep the results")
    parser.add_argument(
        "--limits", action="store_true", help="hold later ones to a tenth more than these"
    )
    asked = parser.parse_args(arguments)
    if find_spec("triton") is None:
        parser.error("triton is not installed; its wheels are for Linux on x86-64")
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("kernels do not compile under TRITON_INTERPRET=1: unset it")
    began, made = time.monotonic(), []
    for row in rows(TARGETS if asked.all else GATED, fresh=asked.fresh):
        print(line_of(row), flush=True)
        made.append(row)
        if asked.write and row["resources"] is not None:
            keep([row])
    print(*summary(made), sep="\n")
    print(f"triton {version('triton')}, {time.monotonic() - began:.0f} s")
    if not asked.limits:
        return int(any(row["faults"] for row in made))
    keep_limits(row for row in made if not row["broken"])
    return int(any(row["broken"] for row in made))


if __name__ == "__main__":
    sys.exit(main())
