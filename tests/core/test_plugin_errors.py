"""Where plugins are called: wrong shapes and exceptions are one line that names the plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attrs import evolve

from longtake.core.errors import PluginError
from longtake.core.model import Model, build_model
from longtake.core.plugin_errors import exit_code, plugin_error
from longtake.core.registry import registry
from longtake.core.values.history import History

from ..program import run
from ..small import small

CODE = """
import attrs, torch
from attrs import field, frozen
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.backbones.wan.specs import TinyWan
from longtake.core.errors import UserError
from longtake.core.hooks import Plugin, impl
from longtake.core.interfaces.compressor import Fit, Length
from longtake.core.interfaces.spec import CompressorSpec
from longtake.core.interfaces.streaming import CellCompressor
from longtake.core.values.grid import Rate
from longtake.core.values.memory import Memory

@frozen(kw_only=True)
class Odd(CompressorSpec):
    way: str = "right"
    rate: Rate = Rate(height=2, width=2, time=2)

class OddCompressor(CellCompressor):
    part = "odd"

    def __init__(self, spec, fit):
        super().__init__(spec, fit)
        self.way = spec.way
        self.out = torch.nn.Linear(fit.geometry.channels, fit.geometry.width + (spec.way == "wide"))

    @classmethod
    def features(cls, spec):
        return {"odd-2x2x2.hint": 3} if spec.way in ("bare", "narrow") else {}

    @classmethod
    def context_length(cls, spec, geometry, size):
        if spec.way == "no length":
            raise UserError("a length that the author refuses")
        return Length(tokens=100 // (spec.way != "divides"))

    def forward(self, history):
        memory = super().forward(history)
        (part,) = memory.parts
        if self.way == "extents":
            part = attrs.evolve(part, extents=part.extents[:1])
        if self.way == "narrow":
            part = attrs.evolve(part, features={"hint": part.tokens[..., :2]})
        if self.way == "undeclared":
            part = attrs.evolve(part, features={"other": part.tokens})
        return None if self.way == "nothing" else Memory(parts=(part,), size=memory.size)

    def encode(self, cells):
        return helper(cells, self.way) or self.out(cells.mean(dim=(2, 3, 4)))

def helper(cells, way):
    if way == "raises":
        {}["first line\\nsecond"]

@frozen(kw_only=True)
class Bent(TinyWan):
    way: str = "right"

class BentBackbone(TinyWanBackbone):
    spec_class = Bent

    @classmethod
    def load(cls, spec, *, seed=0):
        model = super().load(spec, seed=seed)
        model.way = spec.way
        return model

    def fit(self):
        fit = super().fit()
        return attrs.evolve(fit, patch_bias=fit.patch_bias[1:]) if self.way == "fit" else fit

    def forward(self, call):
        made = super().forward(call)
        if self.way == "raises":
            raise RuntimeError("of the author's")
        if self.way == "context":
            return None
        return made[:, :1] if self.way == "velocity" and isinstance(made, torch.Tensor) else made

@impl
def longtake_compressors():
    return [Plugin(name="odd", summary="", spec=Odd, target=f"{__name__}:OddCompressor")]

@impl
def longtake_backbones():
    return [Plugin(name="bent", summary="", spec=Bent, target=f"{__name__}:BentBackbone")]
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of plugins that are wrong in the way that their specs say, loaded."""
    path = tmp_path_factory.mktemp("strangers") / "strangers.py"
    path.write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGTAKE_PLUGINS", str(path))
        registry.cache_clear()
        assert registry().broken == []
        yield path
    registry.cache_clear()


def model_of(compressor: str = "right", backbone: str = "right") -> Model:
    known, base = registry(), small()
    spec = known.get("backbone", "bent").spec
    numbers = {"heads": 2, "head_width": 12, "layers": 1, "ffn": 16}
    plugged = {"codec": base.backbone.codec, "text_encoder": base.backbone.text_encoder}
    odd = known.get("compressor", "odd").spec(way=compressor)
    bent = spec(way=backbone, **numbers, **plugged)
    return build_model(evolve(base, backbone=bent, compressors=(odd,)))


def ask(model: Model) -> None:
    """Let a model make a memory and a velocity."""
    latents = torch.randn(2, 16, 3, 4, 6)
    memory, backbone = model.encoder(History(latents=latents)), model.backbone
    context = backbone.context(backbone.blank_text(2, 3), memory)
    frames = torch.tensor([[0, 1], [0, 1]])
    backbone.velocity(latents[:, :, :2], torch.tensor([0.5, 0.5]), frames, context)


def test_what_is_right_passes(file: Path) -> None:
    ask(model_of())


@pytest.mark.parametrize(
    ("compressor", "backbone", "said"),
    [
        ("right", "velocity", "backbone 'bent' (FILE): the velocity: the shape is [2, 1, 2, 4, 6], "
         "but [B C K H W] [2, 16, 2, 4, 6] is expected"),
        ("right", "context", "backbone 'bent' (FILE): the answer to a ContextCall: it is a"),
        ("right", "fit", "backbone 'bent' (FILE): fit().patch_bias: the shape is [23], but"),
        ("wide", "right", "compressor 'odd' (FILE): part odd-2x2x2: tokens: the shape is [2, "),
        ("nothing", "right", "compressor 'odd' (FILE): its memory: it is a NoneType, but a Memory"),
        ("bare", "right", "compressor 'odd' (FILE): part odd-2x2x2 lacks feature hint, but"),
        ("narrow", "right", "compressor 'odd' (FILE): part odd-2x2x2: feature hint: the shape is"),
        ("undeclared", "right", "compressor 'odd' (FILE): part odd-2x2x2 has feature other, but"),
    ],
)  # fmt: skip
def test_a_wrong_shape_names_plugin_file_and_what_was_expected(
    file: Path, compressor: str, backbone: str, said: str
) -> None:
    with pytest.raises(PluginError) as error:
        ask(model_of(compressor, backbone))
    assert str(error.value).startswith(said.replace("FILE", str(file)))
    assert isinstance(error.value, AssertionError), "as the checks of `core.contract` raise"


@pytest.mark.parametrize(
    ("compressor", "backbone", "said"),
    [
        ("raises", "right", "compressor 'odd' failed (FILE:LINE, in helper): KeyError: "),
        ("right", "raises", "backbone 'bent' failed (FILE:LINE, in forward): RuntimeError: of the"),
    ],
)
def test_an_exception_inside_a_plugin_is_one_line_with_its_place(
    file: Path, compressor: str, backbone: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((KeyError, RuntimeError)) as error:
        ask(model_of(compressor, backbone))
    assert isinstance(error.value, Exception)
    assert exit_code(error.value, "longtake") == 1
    (line,) = capsys.readouterr().err.splitlines()
    begin, _, end = said.partition("LINE")
    assert line.startswith("longtake: " + begin.replace("FILE", str(file)))
    assert end in line and "--debug shows the traceback" in line


def test_a_fault_of_our_own_keeps_its_traceback() -> None:
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError as error:
        assert plugin_error(error) is None
        with pytest.raises(ZeroDivisionError):
            exit_code(error, "longtake")


def show(*words: str, way: str) -> tuple[int, str, str]:
    sets = '[{"type": "odd", "way": "' + way + '"}]'
    return run("show", "tiny-wan-2x2x2", "--set", f"compressors={sets}", *words)


def test_the_program_says_one_line_and_shows_the_traceback_on_demand(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = show(way="divides")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert err.startswith(f"longtake: compressor 'odd' failed ({file}:")
    assert "in context_length): ZeroDivisionError: " in err
    assert show(way="right")[0] == 0
    code, _, err = show("--debug", way="divides")
    assert code == 1 and "Traceback" in err and err.splitlines()[-1].startswith("longtake: comp")
    assert "LONGTAKE_DEBUG" not in os.environ
    monkeypatch.setenv("LONGTAKE_DEBUG", "1")
    assert "Traceback" in show(way="divides")[2]
    monkeypatch.delenv("LONGTAKE_DEBUG")
    assert show(way="no length") == (2, "", "longtake: a length that the author refuses\n")
    assert "--debug" in run("--help")[1]
