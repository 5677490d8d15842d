"""`--set PATH=VALUE`: changes to a spec, made on its JSON form (design §4)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import attrs
from attrs import evolve, frozen

from ..interfaces.spec import PluginSpec
from .convert import TAG, choose, from_json, hints, optional, refuse, to_json
from .faults import SpecError, join, shown, unknown_field

T = TypeVar("T")
_PATH = re.compile(r"[^.\[\]=]+(?:\.[^.\[\]=]+|\[\d+\])*")
_TOKEN = re.compile(r"[^.\[\]=]+")


def apply_sets(spec: T, sets: Sequence[str]) -> T:
    """Return the spec with changes such as `train.steps=10` or `compressors.0.rate=2x2x2`.

    Values are JSON where they parse, else text; `[0]` and `.0` both count into a list. A list of
    one member also goes by its singular: `compressor.rate`. A plugin's bare name
    (`backbone=tiny-wan`) stands for its default spec, and so does another `type`
    (`backbone.type=wan22-5b`): nothing of the old one is kept that is not named again. Changes are
    made in the order given.

    Raises:
        SpecError: with every fault of the paths and of the spec that they make.
    """
    root = _Place(value=to_json(spec), hint=type(spec), path="")
    wrong: list[str] = []
    for text in sets:
        try:
            _set(root, text)
        except ValueError as error:
            wrong.append(str(error))
    try:
        made = from_json(root.value, type(spec))
    except SpecError as error:
        raise SpecError([*wrong, *error.faults]) from error
    if wrong:
        raise SpecError(wrong)
    return made


@frozen(kw_only=True)
class _Place:
    """Where a path has led: the JSON there, its type, and what holds it."""

    value: Any
    hint: Any
    path: str
    holder: Any = None
    key: Any = None


def _set(root: _Place, text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals or not _PATH.fullmatch(path):
        raise ValueError(f"{text}: write PATH=VALUE, such as train.steps=10")
    owner = place = root
    for token in _TOKEN.findall(path):
        owner, place = place, _step(place, token)
    made = _value(value, place.hint)
    if place.key == TAG and owner.holder is not None and _is_plugin(owner.hint):
        if made == place.value:
            return
        place = owner
    place.holder[place.key] = _whole(made, place.hint)


def _step(place: _Place, token: str) -> _Place:
    if isinstance(place.value, list):
        return _into_list(place, token)
    if isinstance(place.value, dict):
        return _into_object(place, token)
    said = f"is {shown(place.value)}, which has no field or member {token!r}"
    raise ValueError(f"{place.path}: {said}; set it whole")


def _into_list(place: _Place, token: str) -> _Place:
    count = len(place.value)
    if not token.isdecimal() or int(token) >= count:
        said = f"members are 0 to {count - 1}" if count else "the list is empty"
        raise ValueError(f"{place.path}[{token}]: no such member; {said}")
    index = int(token)
    members = [m for m in get_args(place.hint) if m is not ...]
    return _Place(
        value=place.value[index],
        hint=members[min(index, len(members) - 1)] if members else None,
        path=join(place.path, index),
        holder=place.value,
        key=index,
    )


def _into_object(place: _Place, token: str) -> _Place:
    known = _fields(place)
    if token not in known and _is_list(known.get(token + "s")):
        return _only_member(place, known, token)
    if token not in known:
        raise ValueError(f"{join(place.path, token)}: {_unknown(token, known)}")
    path = join(place.path, token)
    value = place.value.get(token)
    return _Place(value=value, hint=known[token], path=path, holder=place.value, key=token)


def _only_member(place: _Place, known: Mapping[str, Any], token: str) -> _Place:
    whole = _into_object(place, token + "s")
    count = len(whole.value) if isinstance(whole.value, list) else 0
    if count != 1:
        raise ValueError(
            f"{join(place.path, token)}: there are {count} {token}s; write {token}s.0 and so on"
        )
    return _into_list(evolve(whole, hint=known[token + "s"]), "0")


def _unknown(token: str, known: Mapping[str, Any]) -> str:
    singular = [name[:-1] for name, hint in known.items() if _is_list(hint) and name[-1] == "s"]
    return unknown_field(token, [name for name in known if name != TAG], TAG, *singular)


def _is_list(hint: Any) -> bool:
    return get_origin(optional(hint)[0]) is tuple


def _fields(place: _Place) -> dict[str, Any]:
    cls, _ = optional(place.hint)
    if not (isinstance(cls, type) and attrs.has(cls)):
        return {}
    if not issubclass(cls, PluginSpec):
        return hints(cls)
    try:
        return {TAG: str} | hints(choose(place.value, cls))
    except ValueError as error:
        raise ValueError(f"{join(place.path, TAG)}: {error}") from error


def _value(text: str, hint: Any) -> Any:
    """Return the value that text stands for; a field of text keeps what is neither text nor null."""
    try:
        value = json.loads(text, parse_constant=refuse)
    except ValueError:
        return text
    bare, nullable = optional(hint)
    if bare is str and not isinstance(value, str) and not (value is None and nullable):
        return text
    return value


def _whole(value: Any, hint: Any) -> Any:
    """Return a spec with all its fields, so that later changes find them; faults come later."""
    try:
        return to_json(from_json(value, hint))
    except SpecError:
        return {TAG: value} if isinstance(value, str) and _is_plugin(hint) else value


def _is_plugin(hint: Any) -> bool:
    cls, _ = optional(hint)
    return isinstance(cls, type) and issubclass(cls, PluginSpec)
