"""Wheel, sdist → wheel and the links give the same package."""

from __future__ import annotations

import contextlib
import gzip
import subprocess
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import hatchling.build
import pytest
from hatchling.builders import wheel

ROOT = Path(__file__).resolve().parent.parent


def build(kind: str, source: Path, out: Path) -> Path:
    """What pip and build call: the hooks of PEP 517, in the folder of the source; uncompressed."""
    out.mkdir()
    with contextlib.chdir(source), pytest.MonkeyPatch.context() as patch:
        stored = {**vars(zipfile), "ZIP_DEFLATED": zipfile.ZIP_STORED}
        patch.setattr(wheel, "zipfile", SimpleNamespace(**stored))
        patch.setattr(gzip, "GzipFile", partial(gzip.GzipFile, compresslevel=0))
        name = getattr(hatchling.build, f"build_{kind}")(str(out))
    return out / name


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
    kinds = {".py", ".json", ".jinja", ".css", ".js", ".safetensors"}
    rooms = [ROOT / room for room in ("core", "plugins", "backbones", "kernels", "experiments")]
    files = {path for room in rooms for path in room.rglob("*") if path.suffix in kinds}
    files |= {ROOT / name for name in ("__init__.py", "__main__.py", "py.typed")}
    assert {path.suffix for path in files} > kinds
    assert {f"longtake/{path.relative_to(ROOT).as_posix()}" for path in files} <= names(direct)
    assert not {n for n in names(direct) if n.startswith(("longtake/tests", "longtake/src"))}
    out = subprocess.run(
        [sys.executable, "-c", "import longtake; print(longtake.__file__, longtake.__version__)"],
        env={"PYTHONPATH": str(direct)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert direct.name in out.stdout
