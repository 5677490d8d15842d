"""`tests`: the tests marked `gpu`, by pytest in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ...core.errors import LongtakeError
from ..common import ROOT
from .day import Session, StepResult, TimeIsUp

ON = "LONGTAKE_GPU_TESTS_ON"  # `cpu` lets the tests run on a machine without CUDA
MARK = "mark.gpu"


def run(session: Session, results: StepResult) -> None:
    """Run the tests and add the outcome of each.

    Raises:
        LongtakeError: a test failed, none ran, or there is no checkout with tests.
        TimeIsUp: they took longer than there was.
    """
    files = files_with_gpu_tests(ROOT / "tests")
    if not files:
        raise LongtakeError(f"no tests marked gpu beside the package ({ROOT / 'tests'})")
    report = session.out / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-rs", f"--junitxml={report}"]
    variables = {ON: "cpu"} if session.tiny and session.device.type == "cpu" else {}
    try:
        done = subprocess.run(
            [*command, *map(str, files)],
            cwd=ROOT,
            env=os.environ | variables,
            timeout=max(1.0, session.left),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TimeIsUp from None
    if not report.exists():
        raise LongtakeError(f"pytest ended with {done.returncode} and without a report")
    outcomes = list(read_outcomes(report))
    report.unlink()
    results.add("command", ["pytest", "-m", "gpu", *(str(f.relative_to(ROOT)) for f in files)])
    results.add("tests", outcomes)
    check_outcomes(outcomes)


def check_outcomes(outcomes: list[dict[str, Any]]) -> None:
    """Raise an error where a test failed, or all were skipped.

    Raises:
        LongtakeError: so it is; the message names the tests.
    """
    failed = [row["name"] for row in outcomes if row["outcome"] == "failed"]
    if failed:
        raise LongtakeError(f"{len(failed)} of {len(outcomes)} failed: {', '.join(failed)}")
    if not any(row["outcome"] == "passed" for row in outcomes):
        raise LongtakeError(f"none of {len(outcomes)} tests ran: all were skipped")


def files_with_gpu_tests(tests: Path) -> list[Path]:
    """Return the files of a folder in which a test is marked `gpu`."""
    paths = sorted(tests.rglob("test_*.py")) if tests.is_dir() else []
    return [path for path in paths if MARK in path.read_text(encoding="utf-8")]


def read_outcomes(report: Path) -> Iterator[dict[str, Any]]:
    """Yield name, outcome, seconds and message of every test of a JUnit report."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        messages = {child.tag: child.get("message", "") for child in case}
        failure = messages.get("failure", messages.get("error"))
        skipped = "skipped" in messages
        outcome = "failed" if failure is not None else "skipped" if skipped else "passed"
        yield {
            "name": f"{case.get('classname')}::{case.get('name')}",
            "outcome": outcome,
            "seconds": float(case.get("time", "0")),
            "said": failure or messages.get("skipped"),
        }
