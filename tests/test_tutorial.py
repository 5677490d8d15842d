"""The tutorials: their code is a compressor each, and what the pages say of it holds."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from longtake.core.contract.compressor import check_compressor
from longtake.core.contract.samples import sample_fit, sample_history
from longtake.core.graphed import GraphedStep, Tensors, Work
from longtake.core.hooks import Plugin
from longtake.core.registry import import_file
from longtake.core.values.grid import Rate, Size3

from .program import run

ROOT = Path(__file__).resolve().parent.parent


def tutorial(folder: Path) -> Path:
    """The code of CONTRIBUTING's compressor as the file it says to write."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("### A compressor in 30 lines")[1].split("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code, "the tutorial has no code"
    path = folder / "moments.py"
    path.write_text(code[1], encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tutorial(tmp_path)


def test_it_is_no_longer_than_it_says(file: Path) -> None:
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    assert len(lines) <= 30


@pytest.mark.slow
def test_it_keeps_the_law_of_compressors(file: Path) -> None:
    (record,) = import_file(file).longtake_compressors()
    assert isinstance(record, Plugin)
    check_compressor(record.load(), record.spec())


def test_every_command_finds_it_by_the_variable(
    file: Path, monkeypatch: pytest.MonkeyPatch, own_registry: None
) -> None:
    """And `table1 --add moments.py` makes it a row: see `test_table1`."""
    monkeypatch.setenv("LONGTAKE_PLUGINS", str(file))
    code, out, err = run("list", "--json")
    assert code == 0, err
    found = {p["name"]: p["distribution"] for p in json.loads(out)["plugins"]}
    assert found["moments"] == str(file)


def page_code(page: str) -> list[str]:
    """The Python blocks of a page of the package."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def sketch(tmp_path: Path) -> ModuleType:
    """The file of the tutorial for encoders that get kernels."""
    path = tmp_path / "sketch.py"
    path.write_text(page_code("plugins/compressors/README.md")[0], encoding="utf-8")
    return import_file(path)


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["4x4x2", "2x2x1", "1x2x4"])
def test_an_encoder_of_blocks_keeps_the_law_of_compressors(sketch: ModuleType, rate: str) -> None:
    (record,) = sketch.longtake_compressors()
    check_compressor(record.load(), record.spec(rate=Rate.parse(rate)))


@torch.no_grad()
def test_an_encoder_of_blocks_is_replayed_as_the_page_says(sketch: ModuleType) -> None:
    spec = sketch.Sketch(rate=Rate.parse("2x2x2"))
    compressor = sketch.SketchCompressor(spec, sample_fit()).eval()
    torch.nn.init.normal_(compressor.head.weight)
    whole = sample_history(Size3(time=30, height=5, width=4), compressor.needs(spec))

    def rerun(work: Work) -> tuple[Tensors, Callable[[], None]]:
        made = work()

        def again() -> None:
            for name, x in work().items():
                made[name].copy_(x)

        return made, again

    imported, _, made, step = page_code("plugins/compressors/README.md")[1].strip().split("\n")
    names: dict[str, Any] = {"compressor": compressor, "state": None}
    exec(imported, names)
    assert names["GraphedStep"] is GraphedStep
    names["GraphedStep"] = functools.partial(GraphedStep, record=rerun)
    exec(made, names)
    truth = None
    for chunk in whole.chunks([6] * 5):
        truth, wanted = compressor.step(truth, chunk)
        names["chunk"] = chunk
        exec(step, names)
        assert torch.equal(names["memory"].parts[0].tokens, wanted.parts[0].tokens)
    assert names["graphed"].recorded


def test_a_new_encoder_of_blocks_gives_the_own_tokens_of_the_dit(sketch: ModuleType) -> None:
    spec, fit = sketch.Sketch(rate=Rate.parse("2x2x2")), sample_fit()
    compressor = sketch.SketchCompressor(spec, fit)
    history = sample_history(Size3(time=5, height=4, width=4), compressor.needs(spec))
    found, own = compressor(history).parts[0].tokens, fit.tokens(history.lr[spec.rate])
    torch.testing.assert_close(found, own.flatten(1, 3), rtol=0, atol=1e-12)
    found.square().sum().backward()
    assert compressor.head.weight.grad is not None and compressor.head.weight.grad.any()
