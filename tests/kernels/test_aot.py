"""What the compiler makes of every kernel and tile passes the gate; what the gate reads is right.

Results are kept in kernels/configs/compiled.json; what has changed since is compiled here, so that
a kernel, tile or triton that got worse fails. Not in one process with triton's interpreter.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from longtake.kernels import aot, chunk_attention, conv3d_act, out_tokens, predict
from longtake.kernels.aot import (
    CASES,
    GATED,
    MARGIN,
    MOST_ISSUE,
    SHARED,
    TARGETS,
    Case,
    Limit,
    Resources,
    faults,
    main_loop,
    read_sass,
)
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
        ({"loads": 1}, "1 synchronous loads in the main loop, at most 0"),
        ({"issue": 0.45}, "0.45 instructions a tensor cycle, at most 0.4"),
    ],
)
def test_the_gate_names_what_is_wrong_with_a_new_kernel(
    change: dict[str, float], fault: str
) -> None:
    new = evolve(CASES[0], name="new")
    assert faults(new, "sm_89", FINE) == []
    (found,) = faults(new, "sm_89", evolve(FINE, **change))
    assert fault in found


def named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def rows() -> list[tuple[Case, str, Resources]]:
    """What is kept, by case and target."""
    found = [(named(x["case"]), x["target"], x["resources"]) for x in aot.kept().values()]
    return [(case, target, Resources(**x)) for case, target, x in found]


def test_the_full_command_was_run_and_all_of_it_passes() -> None:
    """Every kernel on every target: what is not compiled anew by tests is held by what is kept."""
    kept = rows()
    pairs = {(case.name, target) for case in CASES for target in case.targets}
    assert {(case.name, target) for case, target, _ in kept} == pairs
    assert {target for _, target, _ in kept} == set(TARGETS) == set(SHARED)
    for case, target, found in kept:
        assert faults(case, target, found) == [], f"{case.name} on {target}"


@pytest.mark.skipif(aot.version("triton") != aot.kept_by(), reason="the table is of another triton")
def test_what_is_kept_is_of_the_kernels_as_they_are() -> None:
    keys = {aot.key_of(case, target) for case in CASES for target in case.targets}
    assert set(aot.kept()) == keys, "kernels changed: python -m longtake.kernels.aot --all --write"


def test_a_kernel_that_got_a_fifth_worse_fails() -> None:
    """On every NVIDIA target, though none of them is beyond what is asked of a new kernel."""
    judged = 0
    for case, target, found in rows():
        if not found.issue:
            continue
        worse = evolve(found, issue=round(1.2 * found.issue + 0.001, 3))
        (fault,) = faults(case, target, worse)
        assert "instructions a tensor cycle" in fault
        (fault,) = faults(case, target, evolve(found, loads=int(1.2 * found.loads) + 1))
        assert "synchronous loads in the main loop" in fault
        judged += 1
    assert judged > 100


def test_only_these_are_beyond_what_is_asked_of_a_new_kernel() -> None:
    """Attention's softmax, and what the compiler unrolls, where it is all counted."""
    slow = {
        (name.removesuffix(" in tf32"), target)
        for (name, target), limit in aot.limits().items()
        if limit.issue > MOST_ISSUE.get(target, 0.0) * MARGIN
    }
    loads = {
        name.removesuffix(" in tf32") for (name, _), limit in aot.limits().items() if limit.loads
    }
    assert slow == {
        (name, "sm_90")
        for name in (
            "tokens 512→5120", "tokens 512→3072", "attention, qkv", "attention, window",
            "attention, window of 15×26", "attention, window, heads of 128",
        )
    }  # fmt: skip
    assert loads == {
        "tokens 512→5120", "tokens 512→3072", "attention, out", "attention, out of 15×26"
    }  # fmt: skip


def test_limits_are_a_tenth_over_what_is_compiled() -> None:
    found = evolve(FINE, loads=44, issue=0.111)
    assert Limit.over(found) == Limit(loads=48, issue=0.123)
    assert Limit.over(evolve(FINE, issue=0.1)) == Limit(loads=0, issue=0.11)
    assert Limit.over(evolve(FINE, loads=4, issue=0.0)) == Limit(loads=4, issue=0.0)


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Tables of one's own in a folder, and two cases on all targets; nothing is compiled."""
    monkeypatch.setattr(aot, "KEPT", tmp_path / "compiled.json")
    monkeypatch.setattr(aot, "LIMITS", tmp_path / "limits.json")
    monkeypatch.setattr(aot, "CASES", (CASES[0], named("append, sums")))
    monkeypatch.setattr(aot, "compiled", lambda case, target: FINE)
    aot.limits.cache_clear()
    yield tmp_path
    aot.limits.cache_clear()


def test_a_target_that_does_not_compile_is_said_with_why_and_the_others_go_on(
    tables: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from triton.runtime.errors import PTXASError

    def compiled(case: Case, target: str) -> Resources:
        if target == "sm_120":
            raise PTXASError(
                "Internal Triton PTX codegen error\n`ptxas` stderr:\n"
                "ptxas fatal   : Value 'sm_120' is not defined for option 'gpu-name'\n"
            )
        if target == "gfx942":
            raise RuntimeError("this build has no AMD backend\nand more")
        return FINE

    monkeypatch.setattr(aot, "compiled", compiled)
    assert aot.main(["--all", "--write", "--limits"]) == 1
    lines = capsys.readouterr().out.splitlines()
    why = "does not compile: ptxas fatal   : Value 'sm_120' is not defined for option 'gpu-name'"
    assert sum(line.endswith(f"! {why}") for line in lines) == 2
    assert f"sm_120  0 of 2 pass; 99 KiB of shared memory; {why}" in lines
    amd = "gfx942  0 of 2 pass; 64 KiB of shared memory"
    assert f"{amd}; does not compile: this build has no AMD backend" in lines
    assert "sm_90   2 of 2 pass; 227 KiB of shared memory" in lines
    assert {x["target"] for x in aot.kept().values()} == {"sm_89", "sm_90", "sm_80", "sm_86"}


def test_the_command_holds_what_comes_to_the_limits_that_it_wrote(
    tables: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert aot.main(["--all", "--write", "--limits"]) == 0
    assert aot.limit_of(CASES[0], "sm_80") == Limit(loads=0, issue=0.11)
    monkeypatch.setattr(aot, "compiled", lambda case, target: evolve(FINE, issue=0.111))
    assert aot.main(["--fresh"]) == 1
    told = capsys.readouterr().out
    assert "0.111 instructions a tensor cycle, at most 0.11" in told
    assert "sm_89   0 of 2 pass, 2 only beyond their limits; 99 KiB of shared memory" in told
    assert aot.main([]) == 0  # what is kept is not compiled again


def test_limits_are_never_of_a_kernel_that_is_broken(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aot, "compiled", lambda case, target: evolve(FINE, spills=4))
    assert aot.main(["--limits"]) == 1
    assert aot.limits() == {}


@pytest.mark.parametrize("fault", ["triton is not installed", "unset it"])
def test_where_nothing_compiles_it_is_one_line(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(aot, "find_spec", lambda _: object() if fault == "unset it" else None)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as left:
        aot.main([])
    assert left.value.code == 2 and fault in capsys.readouterr().err


def test_a_changed_kernel_tile_or_triton_is_compiled_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    case = CASES[2]
    for one in (case, named("tokens 512→5120"), named("attention, qkv")):
        key = aot.key_of(one, "sm_89")
        for place, text in enumerate(aot.TEXTS[one.kind]):  # shared ones, too
            changed = tmp_path / text.name
            changed.write_text(text.read_text(encoding="utf-8") + "\n", encoding="utf-8")
            texts = list(aot.TEXTS[one.kind])
            texts[place] = changed
            with monkeypatch.context() as patch:
                patch.setitem(aot.TEXTS, one.kind, tuple(texts))
                assert aot.key_of(one, "sm_89") != key
    before = {aot.key_of(case, target) for target in GATED}
    assert len(before) == 2
    with monkeypatch.context() as patch:
        patch.setattr(aot, "version", lambda _: "3.10.0")
        assert aot.key_of(case, "sm_89") not in before
    tile = evolve(aot.tile_of(case, "sm_89"), stages=2)
    monkeypatch.setattr(aot, "tile_of", lambda *_: tile)
    assert aot.key_of(case, "sm_89") not in before


def test_every_launch_says_that_products_and_sums_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """What triton does unasked changes with 3.10: launches and the gate ask for the same."""
    from longtake.kernels import chunk_attention_jit, conv3d_act_jit, out_tokens_jit

    asked: dict[str, dict[str, Any]] = {}

    class Noted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *_, **options: asked.update({self.name: options})

    for text in (conv3d_act_jit, out_tokens_jit, chunk_attention_jit):
        for name in [name for name in vars(text) if name.endswith("_kernel")]:
            monkeypatch.setattr(text, name, Noted(name))
    x, y = torch.zeros(1, 1, 2, 8), torch.zeros(8, 8)
    shape = (1, 8, 3, 4, 4)
    conv3d_act.launch(
        torch.zeros(shape).to(memory_format=torch.channels_last_3d), torch.zeros(8, 8, 3, 3, 3),
        y[0], stride=(1, 1, 1), split=2,
    )  # fmt: skip
    chunk_attention.launch(x, None, (y[0], y[0], torch.zeros(24, 8), y, y[0]), heads=2, window=2)
    patch = torch.zeros(8, 3, 1, 2, 2)
    out_tokens.launch(x, y, y[0], torch.zeros(1, 3, 1, 2, 4), patch, y[0], grid=(1, 2))
    assert len(asked) == 7
    assert all(options["enable_fp_fusion"] is True for options in asked.values())


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
