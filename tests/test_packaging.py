"""Wheel, sdist → wheel and the links give the same package."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def build(kind: str, source: Path, out: Path) -> Path:
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(out)]
    subprocess.run([*command, str(source)], check=True, capture_output=True, text=True)
    return next(out.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return {n for n in opened.namelist() if n.startswith("longtake/")}


@pytest.mark.slow
def test_wheel_and_sdist_to_wheel_hold_the_same_package(tmp_path: Path) -> None:
    direct = build("wheel", ROOT, tmp_path / "direct")
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as opened:
        opened.extractall(tmp_path / "unpacked", filter="data")
    again = build("wheel", next((tmp_path / "unpacked").iterdir()), tmp_path / "again")
    assert names(direct) == names(again)
    for part in ("core/grid.py", "core/measure/report.html.jinja", "backbones/codecs/dct48.json",
                 "core/measure/report.css", "core/measure/report.js",
                 "kernels/reference.py", "py.typed", "__main__.py"):  # fmt: skip
        assert f"longtake/{part}" in names(direct)
    assert not {n for n in names(direct) if n.startswith(("longtake/tests", "longtake/src"))}
    out = subprocess.run(
        [sys.executable, "-c", "import longtake; print(longtake.__file__, longtake.__version__)"],
        env={"PYTHONPATH": str(direct)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert direct.name in out.stdout
