"""train.compile: blocks compiled one by one give the numbers of the ones that are not."""

from __future__ import annotations

import shutil

import pytest
import torch

from longtake.core.errors import UserError
from longtake.core.model import build_model
from longtake.core.train.step import check_compiler, compile_blocks
from longtake.experiments.step import _step

from ..small import small


@pytest.mark.slow
def test_a_compiled_step_is_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = _step(small(trains="lora"))
    monkeypatch.setattr(
        "longtake.core.train.step.compile_blocks", lambda g: compile_blocks(g, "eager")
    )
    compiled = _step(small(trains="lora", compile=True))
    for _ in range(2):  # the second one shows the gradients of the first
        assert compiled() == pytest.approx(plain(), rel=1e-5)


def test_names_of_weights_stay() -> None:
    model = build_model(small(), adapters=True).backbone
    before = list(model.state_dict())
    assert compile_blocks(model, "aot_eager") == 2 and list(model.state_dict()) == before


def test_without_a_compiler_it_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler such as g\+\+"):
        _step(small(compile=True))
    monkeypatch.setattr("longtake.core.train.step.find_spec", lambda name: None)
    with pytest.raises(UserError, match="triton on a GPU"):
        check_compiler(torch.device("cuda"))
