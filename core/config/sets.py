"""`--set PATH=VALUE`: changes to a spec, made on its JSON form (design §4)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

import attrs
from attrs import evolve, frozen

from ..interfaces.spec import PluginSpec
from .convert import TAG, choose, from_json, hints, optional, refuse_constant, to_json
from .faults import SpecError, in_json, join, unknown_field

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
    faults: list[str] = []
    for text in sets:
        try:
            _set(root, text)
        except ValueError as error:
            faults.append(str(error))
    try:
        changed = from_json(root.value, type(spec))
    except SpecError as error:
        raise SpecError([*faults, *error.faults]) from error
    if faults:
        raise SpecError(faults)
    return changed


@frozen(kw_only=True)
class _Place:
    """A place in a spec's JSON that a path leads to.

    Attributes:
        value: the JSON there.
        hint: the type of the field or member.
        path: as messages show it.
        holder: the object or list that holds it; None at the root.
        key: its key or index in the holder.
    """

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
    new = _value(value, place.hint)
    if place.key == TAG and owner.holder is not None and _is_plugin(owner.hint):
        if new == place.value:
            return
        place = owner  # another plugin: nothing of the spec of the old one is kept
    place.holder[place.key] = _whole(new, place.hint)


def _step(place: _Place, token: str) -> _Place:
    if isinstance(place.value, list):
        return _into_list(place, token)
    if isinstance(place.value, dict):
        return _into_object(place, token)
    fault = f"is {in_json(place.value)}, which has no field or member {token!r}"
    raise ValueError(f"{place.path}: {fault}; set it whole")


def _into_list(place: _Place, token: str) -> _Place:
    count = len(place.value)
    if not token.isdecimal() or int(token) >= count:
        members = f"members are 0 to {count - 1}" if count else "the list is empty"
        raise ValueError(f"{place.path}[{token}]: no such member; {members}")
    index = int(token)
    hints_of = [member for member in get_args(place.hint) if member is not ...]
    return _Place(
        value=place.value[index],
        hint=hints_of[min(index, len(hints_of) - 1)] if hints_of else None,
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
    """Return the value that text stands for: JSON where it parses, but text for a field of text."""
    try:
        value = json.loads(text, parse_constant=refuse_constant)
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


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the path, as `--set` reads it, the old and the new value of all that differs.

    Both are JSON, as `to_json` gives it. Lists differ whole, and so do plugins of another type.
    """
    both = isinstance(old, Mapping) and isinstance(new, Mapping)
    if both and old.get(TAG) == new.get(TAG):
        for key in dict.fromkeys((*new, *old)):
            yield from differences(old.get(key), new.get(key), join(path, key))
    elif old != new:
        yield path, old, new
