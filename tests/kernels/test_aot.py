"""What the compiler makes of every kernel and tile passes the gate; what the gate reads is right.

Results are kept in kernels/configs/compiled.json; what has changed since is compiled here, so that
a kernel, tile or triton that got worse fails. Not in one process with triton's interpreter.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from pathlib import Path

import pytest
from attrs import evolve

from longtake.kernels import aot, predict
from longtake.kernels.aot import CASES, GATED, Case, Resources, faults, main_loop, read_sass
from longtake.kernels.tiles import TABLES, pick, pick_attention, read_table, shares

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels do not compile in triton's interpreter", allow_module_level=True)

PAIRS = [(case, target) for case in CASES for target in GATED if target in case.targets]
COMPILES = sys.platform == "linux" and platform.machine() == "x86_64"


@pytest.mark.slow
@pytest.mark.skipif(not COMPILES, reason="triton's assembler is for Linux on x86-64")
@pytest.mark.parametrize(
    ("case", "target"), PAIRS, ids=[f"{case.name} {target}" for case, target in PAIRS]
)
def test_every_kernel_passes_the_gate(case: Case, target: str) -> None:
    assert faults(case, target, aot.resources(case, target)) == []


@pytest.mark.slow
@pytest.mark.skipif(not COMPILES, reason="triton's assembler is for Linux on x86-64")
@pytest.mark.parametrize("target", GATED)
def test_what_is_kept_is_what_the_compiler_makes(target: str) -> None:
    case = next(case for case in CASES if case.name == "time 64→128")
    row = aot.kept().get(aot.key_of(case, target))
    assert row is not None, "kernels changed: python -m longtake.kernels.aot --write"
    assert Resources(**row["resources"]) == aot.compiled(case, target)


FINE = Resources(shared=64 * 1024, registers=190, spills=0, products=64, loads=0, issue=0.1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"shared": 101 * 1024}, "bytes of shared memory, at most"),
        ({"spills": 2}, "2 loads or stores of spilled registers"),
        ({"products": 0}, "no tensor instruction"),
        ({"loads": 32}, "32 synchronous loads in the main loop"),
        ({"issue": 0.45}, "0.45 instructions a tensor cycle, at most 0.4"),
    ],
)
def test_the_gate_names_what_is_wrong(change: dict[str, float], fault: str) -> None:
    assert faults(CASES[0], "sm_89", FINE) == []
    (found,) = faults(CASES[0], "sm_89", evolve(FINE, **change))
    assert fault in found


def test_a_limit_of_its_own_is_of_one_target() -> None:
    case = next(case for case in CASES if case.name == "attention, window")
    assert faults(case, "sm_90", evolve(FINE, issue=1.65)) == []
    (found,) = faults(case, "sm_89", evolve(FINE, issue=1.65))
    assert "1.65 instructions a tensor cycle, at most 0.4" in found


def test_a_changed_kernel_tile_or_triton_is_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = CASES[2]
    before = {aot.key_of(case, target) for target in GATED}
    assert len(before) == 2
    changed = tmp_path / "kernel.py"
    changed.write_text(aot.TEXTS["conv"].read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setitem(aot.TEXTS, "conv", changed)
        assert aot.key_of(case, "sm_89") not in before
    with monkeypatch.context() as patch:
        patch.setattr(aot, "version", lambda _: "3.10.0")
        assert aot.key_of(case, "sm_89") not in before
    tile = evolve(aot.tile_of(case, "sm_89"), stages=2)
    monkeypatch.setattr(aot, "tile_of", lambda *_: tile)
    assert aot.key_of(case, "sm_89") not in before


SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.U16 R2, desc[UR4][R2.64] ;
.L_x_0:
        /*0020*/                   IADD3 R4, R4, 0x1, RZ ;
        /*0030*/              @!P0 BRA `(.L_x_0) ;
.L_x_1:
        /*0040*/                   LDGSTS.E.BYPASS.128 [R9], desc[UR4][R8.64] ;
        /*0050*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0060*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0070*/                   {load} R7, [R1] ;
        /*0080*/               @P1 BRA `(.L_x_1) ;
        /*0090*/                   STG.E desc[UR4][R2.64], R4 ;
        /*00a0*/                   EXIT ;
.L_x_2:
        /*00b0*/                   BRA `(.L_x_2);
"""


def test_the_main_loop_is_the_one_with_the_products() -> None:
    plain = SASS.format(load="LDS")
    assert [line.split()[1] for line in main_loop(plain)][:2] == [
        "LDGSTS.E.BYPASS.128",
        "HMMA.16816.F32.BF16",
    ]
    found = read_sass(plain, 1024, 32, "sm_89")
    assert found == Resources(
        shared=1024, registers=32, spills=0, products=2, loads=0, issue=round(5 / 64, 3)
    )
    assert read_sass(SASS.format(load="LDL"), 0, 0, "sm_89").spills == 1
    assert read_sass(SASS.format(load="LDG.E"), 0, 0, "sm_89").loads == 1
    half = plain.replace("HMMA.16816.F32.BF16", "HMMA.16816.F16")
    assert read_sass(half, 0, 0, "sm_89").issue == round(5 / 32, 3)
    hopper = plain.replace("HMMA.16816.F32.BF16", "HGMMA.64x128x16.F32.BF16")
    assert read_sass(hopper, 0, 0, "sm_90").issue == round(5 / 128, 3)


def test_every_table_has_a_tile_for_every_conv() -> None:
    for arch in (0, *TABLES, 120, 121):
        for channels, outputs in ((3, 5), (48, 64), (512, 512), (8, 256), (1024, 2048)):
            for norm in (False, outputs <= 256):
                tile = pick(arch, channels=channels, outputs=outputs, rows=10**6, norm=norm)
                assert not norm or tile.bn >= outputs
                assert all(n >= 16 and n & (n - 1) == 0 for n in (tile.bm, tile.bn, tile.bk))
        for part, rows, width in (("qkv", 312, 64), ("window", 9, 3), ("out", 10**6, 128)):
            narrow, wide = (
                pick_attention(arch, part, rows=rows, head_width=width, itemsize=size)
                for size in (2, 4)
            )
            assert all(n >= 16 for n in (wide.bm, wide.bn, wide.bk))
            assert part != "window" or narrow.bk == wide.bk == 16  # a whole head of 3
    assert {read_table(name)["provenance"] for name in set(TABLES.values())} <= {"aot", "measured"}


def test_shares_keep_processors_busy() -> None:
    assert shares(20, 216, 132) == 4
    assert shares(4, 216, 132) == 16
    assert shares(1, 30, 132) == 2  # each of them has 8 steps or more
    assert shares(200, 216, 132) == 1


def test_the_prediction_is_that_of_the_tables() -> None:
    text = (Path(aot.__file__).parent / "prediction.md").read_text(encoding="utf-8")
    assert text == "\n".join(predict.page()) + "\n"
