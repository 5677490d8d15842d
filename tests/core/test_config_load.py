"""Where experiments come from, and what is said when one cannot be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from longtake.backbones.wan.specs import TinyWan
from longtake.core.config import SpecError, dumps, load_experiment
from longtake.core.errors import UserError
from longtake.core.experiment import CacheSpec, Experiment
from longtake.core.registry import registry
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.maskers.specs import Noise
from longtake.plugins.metrics.specs import Psnr
from longtake.plugins.retrievers.specs import Flow

EXPERIMENT = Experiment(
    name="base",
    backbone=TinyWan(),
    compressors=(Conv(),),
    masker=Noise(),
    retrievers=(Flow(),),
    metrics=(Psnr(),),
)
HEAD = """
from __future__ import annotations
import attrs
from longtake.backbones.wan.specs import TinyWan
from longtake.core.experiment import Experiment
from longtake.plugins.specs import Conv, Flow, Noise, Psnr
base = Experiment(name="base", backbone=TinyWan(), compressors=(Conv(),), masker=Noise(),
                  retrievers=(Flow(),), metrics=(Psnr(),))
"""
LINES = HEAD.count("\n")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(text: str) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(text)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_a_value_or_a_function_of_a_file(folder: Path) -> None:
    body = "def small() -> Experiment:\n    return attrs.evolve(base, name='small')\n"
    path = write(folder, "mine.py", HEAD + body)
    assert load_experiment(f"{path}:base") == ("base", EXPERIMENT)
    name, small = load_experiment(f"{path}:small")
    assert (name, small.name) == ("small", "small")


def test_a_file_alone_holds_exactly_one(folder: Path) -> None:
    path = write(folder, "mine.py", HEAD + "_hidden = base\nwidth = 3\n")
    assert load_experiment(str(path)) == ("base", EXPERIMENT)
    write(folder, "common_base.py", HEAD)
    text = "import attrs\nfrom common_base import base\nv = attrs.evolve(base, name='v')\n"
    assert load_experiment(str(write(folder, "variant.py", text)))[0] == "v", "imports do not count"
    two = write(folder, "two.py", HEAD + "other = base\n")
    assert refused(str(two)) == f"{two} defines 2 experiments: write {two}:base, or other"
    none = write(folder, "none.py", "x = 1\n")
    assert refused(str(none)) == f"{none} defines no experiment"


def test_experiment_is_what_a_file_alone_stands_for(folder: Path) -> None:
    body = "def EXPERIMENT(width=3, *rest):\n    return attrs.evolve(base, name='chief')\n"
    name, found = load_experiment(str(write(folder, "mine.py", HEAD + body)))
    assert (name, found.name) == ("EXPERIMENT", "chief")
    path = write(folder, "more.py", HEAD + "EXPERIMENT = attrs.evolve(base, name='x')\n")
    assert load_experiment(str(path))[1].name == "x"
    assert load_experiment(f"{path}:base")[0] == "base"
    text = "import attrs\nfrom more import EXPERIMENT\nv = attrs.evolve(EXPERIMENT, name='v')\n"
    assert load_experiment(str(write(folder, "variant.py", text)))[0] == "v"


def test_a_file_may_import_its_neighbours(folder: Path) -> None:
    inner = folder / "deep"
    inner.mkdir()
    write(inner, "neighbour_of_it.py", HEAD)
    path = write(inner, "mine.py", "import neighbour_of_it\nx = neighbour_of_it.base\n")
    before = list(sys.path)
    assert load_experiment(f"{path}:x")[1] == EXPERIMENT
    assert sys.path == before


def test_a_module(folder: Path) -> None:
    write(folder, "a_module_of_mine.py", HEAD)
    assert load_experiment("a_module_of_mine:base") == ("base", EXPERIMENT)
    said = refused("a_module_of_mine:bsae")
    assert said == "a_module_of_mine has no 'bsae'; experiments there: base"
    assert refused("no_such_module:base").startswith("there is no module 'no_such_module'")
    assert refused("os.nothing:base").startswith("there is no module 'os.nothing'")


def test_a_shipped_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, "shipped_one.py", HEAD)
    monkeypatch.setitem(registry().experiments, "shipped-name", "shipped_one:base")
    assert load_experiment("shipped-name") == ("shipped-name", EXPERIMENT)
    assert "unknown experiment 'shiped-nam'; known: shipped-name" in refused("shiped-nam")


def test_what_a_json_file_leaves_out_follows_the_backbone(folder: Path) -> None:
    data = {
        "name": "x", "backbone": "wan22-5b", "compressors": ["conv"], "masker": "noise",
        "retrievers": ["flow"], "metrics": ["psnr"], "cache": {"min_seconds": 4.0},
        "train": {"rate": 1e-4, "text_dropout": 0.2},
    }  # fmt: skip
    found = load_experiment(str(write(folder, "own.json", json.dumps(data))))[1]
    assert found.cache == CacheSpec(area=480 * 832, pixels=False)
    assert (found.train.batch, found.train.steps, found.train.text_dropout) == (32, 20_000, 0.2)
    assert found.train.warmup == 100, "the rate was named, and what goes with it is left alone"
    assert found.masker == Noise(clean=0.0)


def test_json_of_a_resolved_spec(folder: Path) -> None:
    path = write(folder, "spec.json", dumps(EXPERIMENT))
    assert load_experiment(str(path)) == ("spec", EXPERIMENT)
    write(folder, "spec.json", dumps(EXPERIMENT).replace('"steps": 1000', '"stepz": 1000'))
    with pytest.raises(SpecError, match=r"^train\.stepz: unknown field; did you mean steps\?$"):
        load_experiment(str(path))
    write(folder, "spec.json", "{")
    assert refused(str(path)).startswith(f"{path}: line 1 is no JSON: ")
    path.write_bytes(b"\xff\xfe")
    assert refused(str(path)) == f"{path} cannot be read: it is no UTF-8 text"
    assert refused(str(folder / "no.json")).endswith(
        "no.json cannot be read: there is no such file"
    )


@pytest.mark.parametrize(
    ("body", "line", "said"),
    [
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("x = = 1", 1, "invalid syntax"),
        ("import attrs\nConv(kernel=5)", 2, "must be one of 3, 4, not 5"),
        ("import sys\nsys.exit('no')", 2, "SystemExit: no"),
        ("import not_there_at_all", 1, "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("raise ValueError('two\\nlines')", 1, "two lines"),
    ],
)
def test_what_a_file_raises_is_one_line_with_its_place(
    folder: Path, body: str, line: int, said: str
) -> None:
    path = write(folder, "mine.py", HEAD + body + "\n")
    assert refused(f"{path}:base") == f"{path}:{LINES + line}: {said}"


def test_what_a_function_raises_is_one_line_with_its_place(folder: Path) -> None:
    body = "def broken():\n    return Conv(lr=False, hr=False)\ndef two(a, b=1): ...\nn = 3\n"
    path = write(folder, "mine.py", HEAD + body)
    said = f"{path}:{LINES + 2}: lr and hr are both off: nothing would be remembered"
    assert refused(f"{path}:broken") == said
    assert refused(f"{path}:two") == f"{path}:two takes arguments (a): it must take none"
    assert refused(f"{path}:n") == f"{path}:n is no Experiment (it is of type int)"
    assert refused(f"{path}:Conv") == f"{path}:Conv is no Experiment (it is a class)"
    assert refused(f"{path}:bas") == f"{path} has no 'bas'; experiments there: base"


def test_what_a_module_raises_is_one_line_with_its_place(folder: Path) -> None:
    write(folder, "a_broken_module.py", "import attrs\n1 / 0\n")
    said = refused("a_broken_module:base")
    assert said.endswith("a_broken_module.py:2: ZeroDivisionError: division by zero")


def test_a_file_that_is_not_there(folder: Path) -> None:
    path = folder / "no.py"
    assert refused(f"{path}:base") == f"{path}: there is no such file"
    assert refused(str(path)) == f"{path}: there is no such file"
