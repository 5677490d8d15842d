"""`longtake check`: a plugin or a file of them, through contract, training and measuring."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .program import run

FILE = """
import torch
from attrs import frozen

from longtake.core.hooks import Plugin, impl
from longtake.core.interfaces.metric import Metric
from longtake.core.interfaces.retriever import LatentFrames, Retriever
from longtake.core.interfaces.spec import MetricSpec, RetrieverSpec


@frozen(kw_only=True)
class Right(MetricSpec):
    pass


@frozen(kw_only=True)
class TooFar(MetricSpec):
    pass


@frozen(kw_only=True)
class OneFrame(RetrieverSpec):
    pass


class RightMetric(Metric):
    goal, bounds = "lower", (0.0, 1.0)

    def __call__(self, reference, result):
        return (result - reference).abs().mean(dim=(1, 2, 3))


class TooFarMetric(RightMetric):
    def __call__(self, reference, result):
        return 3 * super().__call__(reference, result)


class OneFrameRetriever(Retriever):
    def __call__(self, scene, omega, generator):
        return LatentFrames(latents=scene.history.latents[:, :, :1])


def record(name, spec, target):
    return Plugin(name=name, summary="a test's", spec=spec, target=f"{__name__}:{target}")


@impl
def longtake_metrics():
    return [record("right", Right, "RightMetric"), record("too-far", TooFar, "TooFarMetric")]


@impl
def longtake_retrievers():
    return [record("one-frame", OneFrame, "OneFrameRetriever")]
"""


@pytest.fixture
def file(tmp_path: Path, own_registry: None) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_file_has_a_line_for_each_fault_and_exit_code_1(file: Path) -> None:
    code, out, err = run("check", file)
    assert code == 1, err
    lines = out.splitlines()
    (right,) = [line for line in lines if line.startswith("metric right")]
    assert right == "metric right: no fault in contract, cache, two training steps, measuring"
    (far,) = [line for line in lines if line.startswith("metric too-far")]
    assert far.startswith("metric too-far: contract: it gives ") and "its bounds 0 to 1" in far
    assert far.endswith(f"[{file}]"), "the file is named"
    frames = [line for line in lines if line.startswith("retriever one-frame: contract: ")]
    assert len(frames) == 1 and "learned is True, but the history is read" in frames[0]
    assert "check: 12/12" in err  # progress


SMALL = ("--set", "backbone.layers=1", "--set", "backbone.single_layers=1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("tiny-wan", *SMALL[:2]), ("tiny-hunyuan", *SMALL), ("dct",), ("bytes",), ("noise",)],
    ids=lambda words: words[0],
)
def test_plugins_of_every_kind_pass(words: tuple[str, ...]) -> None:
    code, out, err = run("check", *words)
    assert code == 0, out + err
    assert out.endswith(
        f" {words[0]}: no fault in contract, cache, two training steps, measuring\n"
    )
    assert all(line.startswith("check: ") for line in err.splitlines()), "no warnings of ours"


@pytest.mark.slow
def test_a_sound_plugin_passes_by_name_and_says_so_in_json() -> None:
    code, out, err = run("check", "mean-frame", "--json")
    assert code == 0, err
    (found,) = json.loads(out)["plugins"]
    assert (found["kind"], found["name"], found["origin"]) == (
        "retriever",
        "mean-frame",
        "longtake",
    )
    assert found["faults"] == [] and found["unchecked"] == []
    assert found["checked"] == ["cache", "two training steps", "contract", "measuring"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("no-such",), "unknown plugin 'no-such'; known: "),
        (("no-such.py",), "there is no such file"),
        (("psnr", "--set", "metric.nothing=1"), "nothing"),
        (("wan21-14b",), "B parameters here: check a small one"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: tuple[str, ...], line: str, own_registry: None
) -> None:
    code, _, err = run("check", *words)
    assert code == 2 and line in err, err
    assert len(err.strip().splitlines()) == 1


def test_a_plugin_that_did_not_load_is_told_why(
    tmp_path: Path, own_registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "unfinished.py"
    path.write_text(UNFINISHED, encoding="utf-8")
    monkeypatch.setenv("LONGTAKE_PLUGINS", str(path))
    for name in ("half-done", path):
        code, _, err = run("check", name)
        assert code == 2 and "the class is unfinished: it does not define context_length" in err, (
            err
        )
        assert len(err.strip().splitlines()) == 1


UNFINISHED = """
from attrs import frozen

from longtake.authors import Compressor, CompressorSpec, Plugin, impl


@frozen(kw_only=True)
class HalfDoneSpec(CompressorSpec):
    pass


class HalfDone(Compressor[HalfDoneSpec]):
    pass


@impl
def longtake_compressors():
    spec, target = HalfDoneSpec, f"{__name__}:HalfDone"
    return [Plugin(name="half-done", summary="half done", spec=spec, target=target)]
"""

OWN_CODEC = """
from attrs import field, frozen

from longtake.authors import CodecSpec, Plugin, doc, ge, impl
from longtake.backbones.codecs.dct import DctCodec
from longtake.backbones.codecs.specs import Dct


@frozen(kw_only=True)
class Mine(CodecSpec):
    wrong: int = field(default=0, validator=ge(0), metadata=doc("channels too many that it says"))
    channels: int = field(default=16, metadata=doc("channels"))


class MineCodec(DctCodec):
    @property
    def stride(self):
        return Dct().stride

    @property
    def channels(self):
        return self.spec.channels + self.spec.wrong


@impl
def longtake_codecs():
    return [Plugin(name="mine", summary="mine", spec=Mine, target=f"{__name__}:MineCodec")]
"""


def test_a_codec_that_no_tiny_backbone_takes_is_checked_by_its_contract(
    tmp_path: Path, own_registry: None
) -> None:
    path = tmp_path / "codec.py"
    path.write_text(OWN_CODEC, encoding="utf-8")
    code, out, err = run("check", path)
    assert code == 0, out + err
    assert out == (
        "codec mine: no fault in contract; training and measuring not tried: the backbone of "
        "tiny-wan-2x2x2 takes dct or tiny-ae\n"
    )
    code, out, err = run("check", path, "--set", "backbone.codec.wrong=1")
    assert code == 1 and out.startswith("codec mine: contract: "), out + err


def test_a_file_of_names_alone_has_nothing_to_check(tmp_path: Path, own_registry: None) -> None:
    path = tmp_path / "names.py"
    path.write_text(
        "from longtake.core.hooks import impl\n\n\n@impl\ndef longtake_experiments():\n"
        "    return {'mine': 'tests.small:small'}\n",
        encoding="utf-8",
    )
    code, _, err = run("check", path)
    assert code == 2 and "has no plugin to check" in err
