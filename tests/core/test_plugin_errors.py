"""Where plugins are called: wrong shapes and exceptions are one line that names the plugin."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve

from longtake.core.cache.encode import encode_pixels
from longtake.core.data.texts import PromptEmbedder
from longtake.core.errors import PluginError
from longtake.core.interfaces.codec import Codec, decode_whole, encode_whole, to_bytes
from longtake.core.interfaces.masker import Masker
from longtake.core.interfaces.text_encoder import TextEncoder, embed_all
from longtake.core.model import Model, build_model
from longtake.core.plugin_errors import exit_code, plugin_error
from longtake.core.registry import build, registry
from longtake.core.values.draws import Draws
from longtake.core.values.grid import Rate
from longtake.core.values.history import History
from longtake.core.values.text import Text
from longtake.core.video.placement import place

from ..program import run
from ..small import small

CODE = """
import attrs, torch
from attrs import field, frozen
from longtake.backbones.codecs.dct import DctCodec
from longtake.backbones.codecs.specs import Dct
from longtake.backbones.texts.bytes import ByteEncoder
from longtake.backbones.texts.specs import Bytes
from longtake.backbones.wan.published import TinyWanBackbone
from longtake.backbones.wan.specs import TinyWan
from longtake.core.errors import UserError
from longtake.core.hooks import Plugin, impl
from longtake.core.interfaces.compressor import Fit, Length
from longtake.core.interfaces.spec import CompressorSpec
from longtake.core.interfaces.streaming import CellCompressor
from longtake.core.values.grid import Rate
from longtake.core.values.memory import Memory
from longtake.plugins.maskers.hiding import NoiseMasker
from longtake.plugins.maskers.specs import Noise

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

@frozen(kw_only=True)
class Veil(Noise):
    way: str = "right"

class VeilMasker(NoiseMasker):
    def __call__(self, history, text, draws):
        query = super().__call__(history, text, draws)
        rate = next(iter(history.lr))
        changed = {
            "nothing": lambda: None,
            "omega": lambda: attrs.evolve(query, omega=query.omega[0]),
            "targets": lambda: attrs.evolve(query, targets=query.targets[:, :, :1]),
            "levels": lambda: attrs.evolve(query, levels=query.levels[:, 1:]),
            "no lr": lambda: attrs.evolve(query, lr_levels={}),
            "lr": lambda: attrs.evolve(query, lr_levels={rate: query.lr_levels[rate][:1]}),
            "latents": lambda: attrs.evolve(
                query, history=attrs.evolve(query.history, latents=query.targets)),
        }
        return changed.get(self.spec.way, lambda: query)()

@frozen(kw_only=True)
class Lens(Dct):
    way: str = "right"

class LensCodec(DctCodec):
    def encode(self, chunk, state=None):
        latents, after = super().encode(chunk, state)
        if self.spec.way == "no state":
            return latents
        cut = {"channels": latents[:, 1:], "late": latents[:, :, 1:], "rows": latents[..., :-1, :]}
        return cut.get(self.spec.way, latents), after

    def decode(self, chunk, state=None):
        pixels, after = super().decode(chunk, state)
        return pixels[:, :, :-1] if self.spec.way == "short" else pixels, after

@frozen(kw_only=True)
class Tongue(Bytes):
    way: str = "right"

class TongueEncoder(ByteEncoder):
    def encode(self, prompts):
        text = super().encode(prompts)
        changed = {
            "list": lambda: [text],
            "one": lambda: text.select([0]),
            "mask": lambda: attrs.evolve(text, mask=text.mask[:, 1:]),
            "flat": lambda: attrs.evolve(text, embeddings=text.embeddings[0]),
            "pooled": lambda: attrs.evolve(text, pooled=text.embeddings[:1, 0]),
        }
        return changed.get(self.spec.way, lambda: text)()

@impl
def longtake_maskers():
    return [Plugin(name="veil", summary="", spec=Veil, target=f"{__name__}:VeilMasker")]

@impl
def longtake_codecs():
    return [Plugin(name="lens", summary="", spec=Lens, target=f"{__name__}:LensCodec")]

@impl
def longtake_text_encoders():
    return [Plugin(name="tongue", summary="", spec=Tongue, target=f"{__name__}:TongueEncoder")]

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


def spec_of(kind: str, name: str, way: str) -> Any:
    return registry().get(kind, name).spec(way=way)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("right", ""),
        ("nothing", "its query: it is a NoneType, but a Query is expected"),
        ("omega", "omega: the shape is [4], but [B K] [2, 4] is expected"),
        ("targets", "targets: the shape is [2, 4, 1, 4, 6], but [B C K H W] [2, 4, 4, 4, 6] is"),
        ("levels", "levels: the shape is [2, 8], but [B T] [2, 9] is expected"),
        ("no lr", "LR levels: 2x2x2 is expected, but there are those of none"),
        ("lr", "LR levels at 2x2x2: the shape is [1, 5], but [B T'] [2, 5] is expected"),
        ("latents", "the masked latents: the shape is [2, 4, 4, 4, 6], but [B C T H W] [2, 4, 9,"),
    ],
)
@pytest.mark.parametrize("certain", [False, True])
def test_a_masker_s_shapes_are_checked_where_it_is_called(
    file: Path, way: str, said: str, certain: bool
) -> None:
    masker: Masker[Any] = build(evolve(spec_of("masker", "veil", way), counts=(4,)))
    lr = {Rate(height=2, width=2, time=2): torch.randn(2, 4, 5, 2, 3)}
    history = History(latents=torch.randn(2, 4, 9, 4, 6), lr=lr)
    text, draws = (
        Text(embeddings=torch.zeros(2, 1, 4), mask=torch.ones(2, 1) > 0),
        Draws.of(0, 0, [0, 1], "test"),
    )
    if not said:
        assert masker.query(history, text, draws, certain=certain).omega.shape == (2, 4)
        return
    with pytest.raises(PluginError) as error:
        masker.query(history, text, draws, certain=certain)
    assert str(error.value).startswith(f"masker 'veil' ({file}): {said}")


@pytest.mark.parametrize(
    ("way", "said"),
    [
        (
            "channels",
            "its latents: the shape is [1, 47, 3, 2, 3], but [B C T H W] [1, 48, 3, 2, 3]",
        ),
        ("late", "its latents: the shape is [1, 48, 2, 2, 3], but"),
        ("rows", "its latents: the shape is [1, 48, 3, 1, 3], but"),
        ("no state", "encode: it gives a Tensor, but a tensor and the state after it are expected"),
        ("short", "its pixels: the shape is [1, 3, 8, 32, 48], but [B 3 F P Q] [1, 3, 9, 32, 48]"),
    ],
)
def test_a_codec_s_shapes_are_checked_where_it_is_called(file: Path, way: str, said: str) -> None:
    codec: Codec[Any] = build(spec_of("codec", "lens", way))
    stride = codec.stride
    video = torch.rand(1, 3, 9, 2 * stride.height, 3 * stride.width) * 2 - 1
    said = said.replace("32, 48", f"{2 * stride.height}, {3 * stride.width}")
    line = f"codec 'lens' ({file}): {said}"
    with pytest.raises(PluginError) as error:
        decode_whole(codec, encode_whole(codec, video))
    assert str(error.value).startswith(line)
    if way == "short":
        return
    placed = place(video.shape[4], video.shape[3], 32 * 48, (16, 16), 3.0)
    with pytest.raises(PluginError) as error:  # and where videos are cached
        encode_pixels(codec, iter([to_bytes(video)]), frozenset(), False, 8.0, placed)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("list", "its text: it is a list, but a Text is expected"),
        ("one", "embeddings: the shape is [1, "),
        ("mask", "mask: the shape is [2, "),
        ("flat", "embeddings: the shape is ["),
        ("pooled", "pooled: the shape is [1, "),
    ],
)
def test_a_text_encoder_s_shapes_are_checked_where_it_is_called(
    file: Path, tmp_path: Path, way: str, said: str
) -> None:
    encoder: TextEncoder[Any] = build(spec_of("text_encoder", "tongue", way))
    for ask_it in (
        embed_all,
        lambda own, words: PromptEmbedder(tmp_path, own).embed_missing(words),
    ):
        with pytest.raises(PluginError) as error:
            ask_it(encoder, ["a", "b"])
        assert str(error.value).startswith(f"text_encoder 'tongue' ({file}): {said}")
    assert not list(tmp_path.rglob("*.safetensors"))


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
