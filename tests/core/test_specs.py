"""Every spec that is known: documented, validated, plain, and read strictly from JSON."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from typing import Any, get_args

import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from longtake.backbones.wan.specs import TinyWan
from longtake.core.config import SpecError, from_json, to_json
from longtake.core.config.convert import hints, optional
from longtake.core.experiment import Experiment
from longtake.core.interfaces.spec import PluginSpec
from longtake.core.registry import registry
from longtake.core.values.grid import Rate
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.maskers.specs import Noise
from longtake.plugins.metrics.specs import Psnr
from longtake.plugins.retrievers.specs import Flow, Upsample

EXPERIMENT = Experiment(
    name="test",
    backbone=TinyWan(attention="isolated", memory_time=0.5, weights="some/folder"),
    compressors=(Conv(), Conv(hr=False)),
    masker=Noise(),
    retrievers=(Flow(), Upsample()),
    metrics=(Psnr(),),
)
PLAIN = {int, float, bool, str, Rate, type(None)}


def parts(hint: Any) -> Iterator[Any]:
    """Give the classes that an annotation is made of."""
    inner = [x for x in get_args(hint) if x is not ...]
    yield from (y for x in inner for y in parts(x)) if inner else [hint]


def walk(cls: type[Any], found: dict[type[Any], None]) -> dict[type[Any], None]:
    """Give a spec class and all that are nested in it."""
    if cls in found or cls in PLAIN or not attrs.has(cls):
        return found
    found[cls] = None
    for hint in hints(cls).values():
        for inner in parts(hint):
            walk(inner, found)
    return found


def every_spec() -> list[type[Any]]:
    found: dict[type[Any], None] = {}
    for cls in [Experiment, *(plugin.spec for plugin in registry().plugins.values())]:
        walk(cls, found)
    return list(found)


ALL = every_spec()
every = pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)


def default(cls: type[Any]) -> Any:
    needed = [a.name for a in attrs.fields(cls) if a.default is attrs.NOTHING]
    return cls() if not needed else EXPERIMENT if cls is Experiment else None


def test_the_walk_finds_nested_specs() -> None:
    assert {"Experiment", "TrainSpec", "LoRA", "Dct", "Conv"} <= {cls.__name__ for cls in ALL}


@every
def test_every_field_says_what_it_is_and_is_validated(cls: type[Any]) -> None:
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "needs a docstring"
    for attribute in attrs.fields(cls):
        assert attribute.metadata.get("doc", "").strip(), f"{attribute.name}: no doc"
        assert attribute.validator is not None, f"{attribute.name}: no validator"
        assert attribute.kw_only and attribute.name != "type", attribute.name


@every
def test_every_field_has_a_type_that_json_can_carry(cls: type[Any]) -> None:
    for name, hint in hints(cls).items():
        for inner in parts(hint):
            known = inner in PLAIN or attrs.has(inner) or isinstance(inner, str | int)
            assert known, f"{cls.__name__}.{name}: {inner}"


@every
def test_every_spec_is_frozen_and_hashable(cls: type[Any]) -> None:
    spec = default(cls)
    if spec is None:
        assert cls.__setattr__ is not object.__setattr__, "not frozen"
        return
    hash(spec)
    for attribute in attrs.fields(cls):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(spec, attribute.name, None)
    with pytest.raises(TypeError):
        cls(*(1 for _ in range(1)))


@every
def test_every_spec_round_trips(cls: type[Any]) -> None:
    spec = default(cls)
    if spec is None or (isinstance(spec, PluginSpec) and not registered(cls)):
        return
    assert from_json(json.loads(json.dumps(to_json(spec))), cls) == spec


def registered(cls: type[PluginSpec]) -> bool:
    return any(plugin.spec is cls for plugin in registry().of(cls.kind))


def test_every_plugin_has_a_spec_that_needs_nothing() -> None:
    for plugin in registry().plugins.values():
        assert default(plugin.spec) == plugin.spec(), f"{plugin.kind} {plugin.name}"
        assert plugin.summary.strip() and "\n" not in plugin.summary


def places(data: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Give path, holder and key of everything in a JSON value."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in pairs:
        place = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}".lstrip(".")
        yield place, data, key
        if isinstance(value, dict | list):
            yield from places(value, place)


PLACES = [place for place, _, _ in places(to_json(EXPERIMENT))]
WRONG: dict[type[Any], list[Any]] = {
    bool: [0, "true", None, [True]],
    int: [2.0, "3", True, None, [1]],
    float: ["0.5", True, [0.5], {}, float("inf")],
    str: [3, ["a"], True, {"a": 1}],
    list: ["conv", 3, {"0": 1}, None],
    dict: [3, "no such plugin", [], True],
    types.NoneType: [{"a": 1}, ["x"]],
}


def find(data: Any, wanted: str) -> tuple[Any, Any]:
    return next((holder, key) for place, holder, key in places(data) if place == wanted)


def found(data: Any) -> tuple[str, ...]:
    with pytest.raises(SpecError) as caught:
        from_json(data, Experiment)
    assert str(caught.value).splitlines() == list(caught.value.faults)
    return caught.value.faults


@given(place=st.sampled_from(PLACES), data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_wrong_type_anywhere_is_said_at_its_place(place: str, data: st.DataObject) -> None:
    spec = to_json(EXPERIMENT)
    holder, key = find(spec, place)
    holder[key] = data.draw(st.sampled_from(WRONG[type(holder[key])]))
    assert any(line.startswith(place) for line in found(spec))


@pytest.mark.slow
@given(place=st.sampled_from(PLACES), letter=st.sampled_from("xyz_"), where=st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_a_misspelt_field_anywhere_is_said_at_its_place(
    place: str, letter: str, where: int
) -> None:
    spec = to_json(EXPERIMENT)
    holder, key = find(spec, place)
    assume(isinstance(key, str))
    bad = key[:where] + letter + key[where:]
    holder[bad] = holder.pop(key)
    lines = found(spec)
    parent = place.removesuffix(key)
    said = f"{parent}{bad}: unknown field"
    allowed = (f"{parent}type: missing", said) if key == "type" else (said,)
    assert any(line.startswith(allowed) for line in lines)
    if any(line.startswith(said) for line in lines) and len(key) > 3:
        assert f"{said}; did you mean {key}?" in lines


@given(text=st.text(max_size=8), key=st.sampled_from(PLACES))
@settings(max_examples=60, deadline=None)
def test_no_text_breaks_the_reader(text: str, key: str) -> None:
    spec = to_json(EXPERIMENT)
    holder, last = find(spec, key)
    holder[last] = text
    try:
        made = from_json(spec, Experiment)
    except SpecError as error:
        assert error.faults
    else:
        assert isinstance(made, Experiment)


def test_optional_takes_none_apart() -> None:
    assert optional(float | None) == (float, True)
    assert optional(int) == (int, False)
