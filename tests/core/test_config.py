"""JSON in and out: strict, every fault at once, in the words of the validators."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

import attrs
import pytest
from attrs import field, frozen, validators
from hypothesis import given, settings
from hypothesis import strategies as st

from longtake.backbones.codecs.specs import Dct
from longtake.backbones.wan.specs import TinyWan
from longtake.core.config import SpecError, dumps, from_json, loads, message, parse, to_json
from longtake.core.errors import UserError
from longtake.core.experiment import Experiment, TrainSpec
from longtake.core.hooks import Plugin
from longtake.core.interfaces.spec import (
    BackboneSpec,
    CodecSpec,
    CompressorSpec,
    each,
    ge,
    in_,
    instance_of,
)
from longtake.core.registry import registry
from longtake.core.values.grid import STEPS, Rate
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.maskers.specs import Noise
from longtake.plugins.metrics.specs import Psnr, Ssim
from longtake.plugins.retrievers.specs import Flow, MeanFrame

EXPERIMENT = Experiment(
    name="test",
    backbone=TinyWan(codec=Dct(channels=48), memory_time=None),
    compressors=(Conv(),),
    masker=Noise(),
    retrievers=(Flow(), MeanFrame()),
    metrics=(Psnr(), Ssim()),
)


def faults(data: Any, cls: type[Any] = Experiment) -> list[str]:
    with pytest.raises(SpecError) as caught:
        from_json(data, cls)
    assert str(caught.value).splitlines() == list(caught.value.faults)
    return list(caught.value.faults)


def test_a_spec_is_json_and_back() -> None:
    data = to_json(EXPERIMENT)
    assert from_json(json.loads(json.dumps(data)), Experiment) == EXPERIMENT
    assert next(iter(data["backbone"])) == "type" and data["backbone"]["type"] == "tiny-wan"
    assert data["compressors"][0]["rate"] == "4x4x2"
    assert data["masker"]["counts"] == [1, 2, 4]
    assert "type" not in data["train"]


def test_text_is_stable() -> None:
    text = dumps(EXPERIMENT)
    assert loads(text, Experiment) == EXPERIMENT
    assert dumps(loads(text, Experiment)) == text and text.endswith("}\n")
    assert dumps(TinyWan(fps=8)) == dumps(TinyWan(fps=8.0)), "equal specs, equal text"
    assert dumps(TrainSpec(seconds=(4, 20))) == dumps(TrainSpec(seconds=(4.0, 20.0)))
    assert '"é"' in dumps(attrs.evolve(EXPERIMENT, name="é")), "text stays readable"


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (["compressors", 0, "rate"], "2x2", "compressors[0].rate: a rate is written HxWxT, such as "
         "4x4x2, not '2x2'"),
        (["compressors", 0, "rate"], 4, "compressors[0].rate: a rate is written HxWxT, such as "
         "4x4x2, not 4"),
        (["compressors", 0, "rate"], "3x2x2", "compressors[0].rate: a rate has steps of 1, 2, 4 or "
         "8, not 3 (height)"),
        (["compressors", 0, "type"], "cnov", "compressors[0].type: unknown compressor 'cnov'; "
         "known: conv"),
        (["compressors", 0], {}, "compressors[0].type: missing; known: "),
        (["compressors", 0], 7, "compressors[0]: must be an object with a 'type', not 7"),
        (["metrics"], [], "metrics: needs at least 1, has 0"),
        (["compressors"], "conv", "compressors: must be a list, not 'conv'"),
        (["train", "stepz"], 3, "train.stepz: unknown field; did you mean steps?"),
        (["train", "steps"], 0, "train.steps: must be >= 1, not 0"),
        (["train", "steps"], "3", "train.steps: must be a whole number, not '3'"),
        (["train", "steps"], 3.0, "train.steps: must be a whole number, not 3.0"),
        (["train", "steps"], True, "train.steps: must be a whole number, not true"),
        (["train", "rate"], True, "train.rate: must be a number, not true"),
        (["train", "rate"], float("nan"), "train.rate: must be a finite number, not nan"),
        (["train", "rate"], 10**400, "train.rate: must be a finite number, not "),
        (["train", "checkpointing"], 1, "train.checkpointing: must be true or false, not 1"),
        (["train", "precision"], "fp31", "train.precision: must be one of auto, fp32, bf16, not "
         "'fp31'; did you mean fp32?"),
        (["train", "seconds"], [1], "train.seconds: must be a list of 2, not of 1"),
        (["train", "seconds", 1], "x", "train.seconds[1]: must be a number, not 'x'"),
        (["train", "seconds"], [2, 1], "train.seconds: needs two numbers of seconds, 0 < first <= "
         "second, not (2.0, 1.0)"),
        (["train", "adapter", "rank"], 0, "train.adapter.rank: must be >= 1, not 0"),
        (["train"], None, "train: must be an object with fields, not null"),
        (["name"], 3, "name: must be text, not 3"),
        (["backbone", "codec", "channels"], 17, "backbone.codec.channels: must be one of 16, 48, "
         "not 17"),
        (["backbone", "attention"], "isolated", "backbone: memory_time is shared (null), but "),
        (["backbone", "memory_time"], 2, "backbone.memory_time: must be between 0 and 1, or null "
         "for shared, not 2"),
        (["backbone", "weights"], "", "backbone.weights: must name weights, or be null"),
    ],
)  # fmt: skip
def test_each_fault_has_its_line(path: list[Any], value: Any, line: str) -> None:
    data = to_json(EXPERIMENT)
    holder = data
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value
    found = faults(data)
    assert len(found) == 1 and found[0].startswith(line), found


def test_all_faults_are_said_at_once() -> None:
    data = to_json(EXPERIMENT)
    del data["name"], data["masker"]["type"]
    data["compressors"] += [{"type": "conv", "rate": "2x2", "kernel": 7, "extra": 1}]
    data["train"] |= {"steps": 0, "batch": 1.5}
    places = [line.partition(": ")[0] for line in faults(data)]
    assert places == [
        "name", "compressors[1].rate", "compressors[1].kernel", "compressors[1].extra",
        "masker.type", "train.steps", "train.batch",
    ]  # fmt: skip


def test_a_fault_across_fields_stands_at_its_owner() -> None:
    assert faults({"type": "conv", "lr": False, "hr": False}, CompressorSpec) == [
        "compressor: lr and hr are both off: nothing would be remembered"
    ]


def test_a_concrete_class_needs_no_type_but_refuses_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert from_json({"channels": 16}, Dct) == from_json({"type": "dct", "channels": 16}, Dct)
    other = Plugin(name="other", summary="", spec=_OtherCodec, target="a:b")
    monkeypatch.setitem(registry().plugins, ("codec", "other"), other)
    assert faults({"type": "other"}, Dct) == ["type: must be dct here, not 'other'"]
    assert from_json({"type": "other"}, CodecSpec) == _OtherCodec()
    data = to_json(TinyWan())
    del data["text_encoder"]["type"]
    assert from_json(data, BackboneSpec) == TinyWan()


def test_a_bare_name_is_a_plugin_as_it_ships() -> None:
    assert from_json("conv", CompressorSpec) == Conv()
    data = to_json(EXPERIMENT) | {"metrics": ["ssim", "psnr"]}
    assert from_json(data, Experiment).metrics == (Ssim(), Psnr())


def test_a_spec_without_a_plugin_cannot_be_written() -> None:
    with pytest.raises(UserError, match="no codec plugin has the spec class _OtherCodec"):
        to_json(_OtherCodec())


@frozen(kw_only=True)
class _OtherCodec(CodecSpec):
    """A codec that nothing registers."""


@frozen(kw_only=True)
class _Odd:
    """Kinds of fields that no shipped spec has."""

    level: Literal["low", "high", 3] = "low"
    many: int | str | None = None
    pair: tuple[int, str] = (1, "a")
    rates: tuple[Rate, ...] = ()
    word: str = field(default="ab", validator=validators.matches_re("[a-z]+"))
    names: tuple[str, ...] = field(default=("a",), validator=validators.min_len(1))
    low: float = 0.0
    high: float = field(default=1.0)
    wild: int = field(default=0)

    @high.validator
    def _above(self, attribute: Any, value: float) -> None:
        if value < self.low:
            raise ValueError(f"must not be below low ({self.low:g})")

    @wild.validator
    def _bad_code(self, attribute: Any, value: int) -> None:
        if value:
            raise KeyError("a bug")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"level": "hig"}, ["level: must be one of low, high, 3, not 'hig'; did you mean high?"]),
        ({"many": [1]}, ["many: must be a whole number or text, not [1]"]),
        ({"pair": [1, 2]}, ["pair[1]: must be text, not 2"]),
        ({"rates": ["1x1x1", 3]},
         ["rates[1]: a rate is written HxWxT, such as 4x4x2, not 3"]),
        ({"word": "A"}, ["word: must match [a-z]+, not 'A'"]),
        ({"names": []}, ["names: its length must be >= 1, not 0"]),
        ({"low": 2, "high": 1}, ["high: must not be below low (2)"]),
        ({"low": "x", "high": 1}, ["low: must be a number, not 'x'"]),
        ({"wild": 1}, ["wild: KeyError: 'a bug'"]),
        ({3: 1}, ["3: unknown field; there are high, level, low, many, names and 4 more "
                  "(`longtake show EXPERIMENT --fields` lists all)"]),
        ([], ["_odd: must be an object with fields, not []"]),
    ],
)  # fmt: skip
def test_every_kind_of_field_and_validator(data: Any, expected: list[str]) -> None:
    assert faults(data, _Odd) == expected


def test_every_kind_of_field_round_trips() -> None:
    odd = _Odd(level=3, many="x", pair=(2, "b"), rates=(Rate(height=1, width=2, time=8),))
    assert from_json(json.loads(json.dumps(to_json(odd))), _Odd) == odd


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: TrainSpec(steps=0), "must be >= 1, not 0"),
        (lambda: Conv(kernel=5), "must be one of 3, 4, not 5"),
        (lambda: Conv(lr=1), "must be true or false, not 1"),
        (lambda: Conv(rate="2x2x2"), "must be a Rate, not '2x2x2'"),
    ],
)
def test_what_stock_validators_say_is_made_human(build: Callable[[], Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        build()
    assert message(caught.value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "a": 2}', "x.json: the key 'a' is given twice in one object"),
        ('{"a": NaN}', "x.json: NaN is no number of JSON"),
        ('{"a":\n1,}', "x.json: line 2 is no JSON: "),
        ("[" * 100_000, "x.json: nested too deeply"),
    ],
)
def test_text_is_read_strictly(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, where="x.json")
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@given(rate=st.builds(Rate, **dict.fromkeys(("height", "width", "time"), st.sampled_from(STEPS))))
@settings(max_examples=20, deadline=None)
def test_rates_round_trip(rate: Rate) -> None:
    assert from_json(to_json(Conv(rate=rate)), CompressorSpec) == Conv(rate=rate)


def test_the_words_of_our_own_validators_survive() -> None:
    @frozen(kw_only=True)
    class Own:
        counts: tuple[int, ...] = field(default=(1,), validator=each(ge(1), at_least=1))
        kind: str = field(default="a", validator=[instance_of(str), in_(("a", "b"))])

    Own.__annotations__ = {"counts": tuple[int, ...], "kind": str}
    assert faults({"counts": [], "kind": "c"}, Own) == [
        "counts: needs at least 1, has 0", "kind: must be one of a, b, not 'c'",
    ]  # fmt: skip
