"""The GPU day: every step in its tiny form, and the doors' refusals."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from longtake.core.errors import LongtakeError, UserError
from longtake.core.kernel_bench.setups import encoder_setups
from longtake.experiments.common import ROOT, interrupt_after, machine_facts
from longtake.experiments.gpu_day import __main__ as gpu_day
from longtake.experiments.gpu_day import bench, checks, kernels
from longtake.experiments.gpu_day.cap import largest_power_of_two
from longtake.experiments.gpu_day.checks import check_outcomes, files_with_gpu_tests, read_outcomes
from longtake.experiments.gpu_day.day import DONE, FAILED, OPEN, Session, StepResult, TimeIsUp
from longtake.experiments.gpu_day.training import measured_runs, planned_runs, store_of
from longtake.experiments.returns import __main__ as returns
from longtake.experiments.table1 import __main__ as table1

from .test_gpu_backbones import NAMES

ONE_TEST = """
import os
import pytest
import torch

@pytest.mark.gpu
def test_one():
    assert torch.cuda.is_available() or os.environ.get("LONGTAKE_GPU_TESTS_ON") == "cpu"
"""
HEAD = {"step": "bench", "tiny": True, "at": {"commit": "a", "dirty": False}}


def day(out: Path, *, seconds: float = 60.0, tiny: bool = True) -> Session:
    return Session(out=out, keep=out / "keep", videos=None, tiny=tiny, end=time.time() + seconds)


@pytest.mark.slow
def test_a_tiny_day_does_every_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One in a process of its own, as all are on a real day, the others here: imports are slow.

    `kernels` compiles, which the checks of shapes in this process do not let through. `tests` runs
    a file of one test; the real ones run in this suite (LONGTAKE_GPU_TESTS_ON).
    """
    out = tmp_path / "day"
    monkeypatch.setattr(checks, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_one.py").write_text(ONE_TEST)
    tiny = ["--out", str(out), "--keep", str(out / "keep"), "--tiny"]
    assert gpu_day.main(["kernels", *tiny, "--minutes", "8"]) == 0, capsys.readouterr().out
    for step in gpu_day.STEPS:
        if step != "kernels":
            code = gpu_day.main([step, *tiny, "--one", "--end", str(time.time() + 480)])
            assert code == 0, capsys.readouterr().out
    capsys.readouterr()
    found = {s: json.loads((out / f"{s}.json").read_text("utf-8")) for s in gpu_day.STEPS}
    for step, result in found.items():
        assert result["state"] == DONE and result["step"] == step and result["figures"]
        assert result["machine"]["versions"]["torch"] == torch.__version__
        assert {"commit", "dirty"} <= set(result["at"]) and result["seconds"] > 0
    passed = [t for t in found["tests"]["figures"]["tests"] if t["outcome"] == "passed"]
    assert len(passed) == 1
    assert found["bench"]["figures"]["longtake bench"]["encoder"]["tokens"] > 0
    kernels = found["kernels"]["figures"]
    ways = kernels["tiny 4x4x2"]["encode"]["4 s"]["ways"]
    assert all(way["error"] < 0.05 for way in ways.values()) and len(ways) >= 4
    assert kernels["tiny 4x4x2"]["attention"]["ways"]["ours"]["over_floor"] > 0
    assert "ours, CUDA graph" in kernels["tiny 4x4x2"]["append"]["4 s"]["ways"]
    exact = [g for g in kernels["goals"] if g["asked"].startswith("streamed")]
    assert len(exact) == 2 and all(goal["met"] for goal in exact)
    cases = found["backbones"]["figures"]
    assert cases["hunyuan, Stage I, 40"]["over_no_memory"] > 0
    for name in NAMES:
        mine = [key for key in cases if key == name or key.startswith(f"{name}, ")]
        assert len(mine) == 11, mine
    assert len(cases) == 1 + 11 * len(NAMES)
    assert found["train"]["figures"]["tiny-wan-4x4x2"]["step"] == 2
    assert [row["row"] for row in found["table"]["figures"]["rows"]] == ["proposed-4x4x2"]
    assert (out / "keep" / "measure" / "tiny-wan-2x2x2" / "report.html").exists()
    assert gpu_day.main(["--out", str(out), "--tiny"]) == 0  # nothing is left to do
    assert capsys.readouterr().out == ""


def test_the_bench_of_a_tiny_day_notes_its_figures(tmp_path: Path) -> None:
    book = StepResult.open(tmp_path / "bench.json", HEAD, day(tmp_path))
    bench.run(book.session, book)
    (figures,) = json.loads(book.path.read_text("utf-8"))["figures"].values()
    assert figures["experiment"] == "tiny-wan-2x2x2, tiny"
    assert figures["encoder"]["tokens"] > 0 and figures["denoising_step"]


def test_an_encoder_that_fails_leaves_the_others_and_the_goals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(setup: Any, form: Any, device: torch.device) -> dict[str, Any]:
        raise RuntimeError("no room")

    monkeypatch.setattr(kernels, "measure_encoder", measure)
    book = StepResult.open(tmp_path / "kernels.json", HEAD, day(tmp_path))
    with pytest.raises(LongtakeError, match="tiny 4x4x2: RuntimeError: no room"):
        kernels.run(book.session, book)
    assert {"machine", "goals"} == set(book.figures)
    assert book.figures["goals"] and not any(goal["met"] for goal in book.figures["goals"])


def test_training_is_sliced_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), interrupt_after(0.05):
        for _ in range(6000):  # a loaded machine may fire late
            time.sleep(0.01)
    with interrupt_after(30.0):
        pass  # an alarm that was not needed stays silent


def test_the_alarm_rings_where_ctrl_c_is_ignored() -> None:
    """As in a job that a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interrupt_after(0.05):
            for _ in range(6000):
                time.sleep(0.01)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["fly", "--tiny"],
            "unknown step 'fly'; known: table, kernels, memory-cap, backbones, bench, tests, train",
        ),
        (["bench", "--tiny", "--minutes", "0"], "--minutes 0: must be above 0"),
        (["train"], "`train` needs --videos, a folder that holds train/ and val/"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_day.main([*arguments, "--out", str(tmp_path / "day")]) == 2
    assert capsys.readouterr().err == f"gpu_day: {said}\n"
    assert not (tmp_path / "day").exists()


def test_every_failure_is_one_line_as_in_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [(LongtakeError("no luck"), 1), (PermissionError(13, "Permission denied", "day"), 2)]
    for error, code in errors:

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(gpu_day, "_session", fail)
        assert gpu_day.main(["bench", "--out", str(tmp_path)]) == code
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_cuda_only_a_tiny_day_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_day.main(["bench", "--out", str(tmp_path / "day")]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_without_time_nothing_is_begun(tmp_path: Path) -> None:
    arguments = ["bench", "--out", str(tmp_path / "day"), "--tiny", "--minutes", "0.01"]
    assert gpu_day.main(arguments) == gpu_day.AGAIN


def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    book = StepResult.open(tmp_path / "bench.json", HEAD, day(tmp_path))
    assert book.measure("bad", lambda: 1 // 0) is None
    assert book.measure("good", lambda: 2) == 2
    with pytest.raises(LongtakeError, match="bad: ZeroDivisionError"):
        book.raise_faults()


def test_a_step_goes_on_from_its_figures(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    book = StepResult.open(path, HEAD, day(tmp_path))
    book.measure("first", lambda: 1)
    with pytest.raises(TimeIsUp):
        StepResult.open(path, HEAD, day(tmp_path, seconds=0.0)).measure("second", lambda: 2)
    again = StepResult.open(path, HEAD, day(tmp_path))
    assert again.measure("first", lambda: 3) == 1
    other = StepResult.open(path, HEAD | {"at": {"commit": "b", "dirty": False}}, day(tmp_path))
    assert other.measure("first", lambda: 3) == 3  # of another commit, so made anew
    book.finish(DONE)
    assert StepResult.open(path, HEAD, day(tmp_path)).figures == {}  # done: asked for again


def test_a_step_that_dies_is_a_failure(tmp_path: Path) -> None:
    died = gpu_day._died({"figures": {"a": 1}}, "bench", "-9")
    assert died["state"] == FAILED and died["figures"] == {"a": 1} and "-9" in died["error"]


def test_outcomes_of_pytest_are_read(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        "<testsuites><testsuite><testcase classname='a' name='b' time='1'/>"
        "<testcase classname='a' name='c' time='0'><skipped message='no CUDA'/></testcase>"
        "<testcase classname='a' name='d' time='0'><failure message='off'/></testcase>"
        "</testsuite></testsuites>",
        encoding="utf-8",
    )
    rows = list(read_outcomes(report))
    assert [row["outcome"] for row in rows] == ["passed", "skipped", "failed"]
    with pytest.raises(LongtakeError, match="1 of 3 failed: a::d"):
        check_outcomes(rows)
    with pytest.raises(LongtakeError, match="all were skipped"):
        check_outcomes(rows[1:2])
    check_outcomes(rows[:2])


def test_gpu_tests_are_found_by_their_mark() -> None:
    names = [path.name for path in files_with_gpu_tests(ROOT / "tests")]
    assert "test_gpu.py" in names and "test_grid.py" not in names


def test_the_plan_is_the_shipped_experiments(tmp_path: Path) -> None:
    today = day(tmp_path, tiny=False)
    plan = planned_runs(today)
    names = [run.name for run in plan]
    assert names[0] == "tiny-base" and "tiny-base-4x4x2" in names
    assert {run.name for run in measured_runs(today)} == {"tiny-wan-2x2x2", "tiny-wan-4x4x2"}
    for index, run in enumerate(plan):
        assert {run.after, run.base} - {None} <= set(names[:index]), "a run begins with later ones"
        assert store_of(run.experiment, today).name.startswith(f"train-{run.experiment.cache.area}")


def test_real_sizes_are_the_published_ones() -> None:
    found = {case.name: case for case in encoder_setups(tiny=False)}
    assert not any(name.startswith("wan21-14b") for name in found)  # the shapes of wan22-14b
    assert {c.geometry.width for c in found.values()} == {1536, 3072, 5120}
    case = found["wan22-14b 4x4x2"]
    size = case.size(20.0)
    assert (size.height, size.width) == (60, 104) and (size.time - 1) % 2 == 0
    assert attrs.asdict(case.rate) == {"height": 4, "width": 4, "time": 2}


@pytest.mark.parametrize("command", [gpu_day.main, returns.main, table1.main])
def test_a_folder_that_cannot_be_written_is_said_before_the_work(
    command: Callable[[list[str]], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {gpu_day.main: ["bench", "--tiny"], returns.main: ["tiny-wan-2x2x2"]}.get(command)
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out"
    assert command([*(first or ["--budget", "tiny"]), "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert f"--out {out}: {tmp_path}/file is a file" in said.err and len(said.err.splitlines()) == 1


@pytest.mark.parametrize(("limit", "best"), [(0, 0), (1, 1), (5, 4), (100, 8)])
def test_the_largest_batch_is_found(limit: int, best: int) -> None:
    assert largest_power_of_two(lambda number: number <= limit, most=8) == best


def test_facts_name_device_and_versions() -> None:
    found = machine_facts()
    assert found["device"] and found["versions"]["torch"] == torch.__version__
    assert OPEN != DONE and issubclass(UserError, LongtakeError)
