"""`--set PATH=VALUE`: changes to a spec, made on its JSON form (design §4)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast, get_args, get_origin

import attrs
from attrs import evolve, frozen

from ..experiment import Experiment
from ..interfaces.spec import BackboneSpec, PluginSpec
from ..values.grid import Rate
from .convert import TAG, candidates, choose, from_json, hints, optional, refuse_constant, to_json
from .faults import SpecError, in_json, join, unknown_field
from .recipe import (
    GROUPS,
    RETRIEVERS,
    TARGETS,
    Path,
    Recipe,
    Swap,
    at_new_rate,
    backbone_fields,
    check_weights,
    in_data,
    leaves,
    moved,
    path_text,
    recipe_of,
    swap_of,
)

T = TypeVar("T")
WHOLE = ("backbone", "backbone.type")  # paths of a whole backbone
_PATH = re.compile(r"[^.\[\]=]+(?:\.[^.\[\]=]+|\[\d+\])*")
_TOKEN = re.compile(r"[^.\[\]=]+")


@frozen(kw_only=True)
class Changed(Generic[T]):
    """A spec as `--set` left it.

    Attributes:
        spec: the spec.
        sets: the paths that were set, such as `compressors[0].rate`.
        swap: what became of an experiment that was put on another backbone, or None.
    """

    spec: T
    sets: tuple[str, ...]
    swap: Swap | None


def apply_sets(spec: T, sets: Sequence[str]) -> T:
    """Return the spec with changes such as `train.steps=10` or `compressors.0.rate=2x2x2`.

    Values are JSON where they parse, else text; `[0]` and `.0` both count into a list. A list of
    one member also goes by its singular: `compressor.rate`. A plugin's bare name
    (`masker=drop`) stands for its default spec, as the recipe of the experiment's backbone has it,
    and so does another `type` (`masker.type=drop`): nothing of the old one is kept that is not
    named again. Another backbone (`backbone=wan22-5b`) comes first, wherever it stands, and brings
    its recipe: see `on_backbone`. All other changes are made in the order given.

    Raises:
        SpecError: with every fault of the paths and of the spec that they make.
    """
    return change(spec, sets).spec


def change(spec: T, sets: Sequence[str]) -> Changed[T]:
    """Return what `apply_sets` returns, with what was set and what followed a new backbone.

    Raises:
        SpecError: as `apply_sets`.
        UserError: the class of the backbone names weights that are nowhere (`check_weights`).
    """
    root = _Place(value=to_json(spec), hint=type(spec), at=())
    faults: list[str] = []
    paths: list[str] = []
    swap = None
    if isinstance(spec, Experiment):
        sets, backbone = _backbone_first(sets)
        if backbone is not None and backbone is not type(spec.backbone):
            swap = _swap(root, spec, backbone)
    for text in sets:
        try:
            paths.append(_set(root, text))
        except ValueError as error:
            faults.append(str(error))
    try:
        changed = from_json(root.value, type(spec))
    except SpecError as error:
        raise SpecError([*faults, *error.faults]) from error
    if faults:
        raise SpecError(faults)
    if isinstance(spec, Experiment):
        check_weights(type(cast(Experiment, changed).backbone))
        made = at_new_rate(
            spec,
            cast(Experiment, changed),
            weights=not _names_weights(sets),
            retrievers=not any(path.startswith(RETRIEVERS) for path in paths),
        )
        changed = cast(T, made)
    return Changed(spec=changed, sets=tuple(paths), swap=swap)


def _backbone_first(sets: Sequence[str]) -> tuple[list[str], type[BackboneSpec] | None]:
    """Return the changes with the last one of the whole backbone first, and the class it names."""
    whole = [text for text in sets if text.partition("=")[0] in WHOLE and "=" in text]
    if not whole:
        return list(sets), None
    rest = [text for text in sets if text not in whole]
    value = _value(whole[-1].partition("=")[2], BackboneSpec)
    name = value.get(TAG) if isinstance(value, dict) else value
    known = candidates(BackboneSpec)
    return [whole[-1], *rest], known.get(name) if isinstance(name, str) else None


def _names_weights(sets: Sequence[str]) -> bool:
    """Return whether changes name the weights of the backbone, alone or with the whole of it."""
    named = [text.partition("=") for text in sets]
    whole = [_value(value, BackboneSpec) for path, _, value in named if path in WHOLE]
    given = any(isinstance(value, dict) and "weights" in value for value in whole)
    return given or any(path == "backbone.weights" for path, _, _ in named)


def _swap(root: _Place, experiment: Experiment, backbone: type[BackboneSpec]) -> Swap:
    """Put what follows a new backbone into an experiment's JSON, and return what that is."""
    found = moved(experiment, backbone)
    for path, value in found.items():
        _put(root.value, path, value)
    return swap_of(experiment, backbone, found)


def plain(value: Any) -> Any:
    """Return a value of a spec as JSON has it: tuples as lists, specs as objects."""
    if isinstance(value, tuple):
        return [plain(member) for member in value]
    return to_json(value) if attrs.has(type(value)) else value


@frozen(kw_only=True)
class _Place:
    """A place in a spec's JSON that a path leads to.

    Attributes:
        value: the JSON there.
        hint: the type of the field or member.
        at: the path.
        holder: the object or list that holds it; None at the root.
        key: its key or index in the holder.
    """

    value: Any
    hint: Any
    at: Path
    holder: Any = None
    key: Any = None

    @property
    def path(self) -> str:
        """The path as messages show it."""
        return path_text(self.at)


def _set(root: _Place, text: str) -> str:
    """Make one change, and return the path that it is of."""
    path, equals, value = text.partition("=")
    if not equals or not _PATH.fullmatch(path):
        raise ValueError(f"{text}: write PATH=VALUE, such as train.steps=10")
    owner = place = root
    for token in _TOKEN.findall(path):
        owner, place = place, _step(place, token)
    new = _value(value, place.hint)
    if place.key == TAG and owner.holder is not None and _is_plugin(owner.hint):
        if new == place.value:
            return place.path
        place, new = owner, {TAG: new}  # another plugin: nothing of the old one's spec is kept
    place.holder[place.key] = _whole(new, place, root)
    return place.path


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
        at=(*place.at, index),
        holder=place.value,
        key=index,
    )


def _into_object(place: _Place, token: str) -> _Place:
    known = _fields(place)
    if token not in known and _is_list(known.get(token + "s")):
        return _only_member(place, known, token)
    if token not in known:
        raise ValueError(f"{join(place.path, token)}: {_unknown(token, known)}")
    value, at = place.value.get(token), (*place.at, token)
    return _Place(value=value, hint=known[token], at=at, holder=place.value, key=token)


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


def _recipe(root: _Place) -> Recipe:
    """Return the recipe of the backbone that an experiment's JSON names; none of other specs."""
    backbone = root.value.get("backbone") if root.hint is Experiment else None
    if not isinstance(backbone, dict):
        return {}
    try:
        finetunes = root.value.get("finetune") is not None
        return recipe_of(choose(backbone, BackboneSpec), finetunes=finetunes)
    except ValueError:  # the fault of the backbone comes later
        return {}


def _rate(root: _Place) -> Rate | None:
    """Return the rate of the memory in an experiment's JSON; None where it cannot be told yet."""
    members = root.value.get("compressors") if root.hint is Experiment else None
    for text in _rate_texts(members):
        try:
            return Rate.parse(text)
        except ValueError:  # its fault comes later
            return None
    return None


def _rate_texts(value: Any) -> Iterator[str]:
    """Yield the rates in the JSON of compressors, and of compressors in them, in their order."""
    if isinstance(value, dict):
        for key, member in value.items():
            if key == "rate" and isinstance(member, str):
                yield member
            yield from _rate_texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from _rate_texts(member)


def _whole(value: Any, place: _Place, root: _Place) -> Any:
    """Return what is set with all its fields, so that later changes find them; faults come later.

    Fields that the value does not name are as the recipe has them.
    """
    recipe = _recipe(root)
    named = {TAG: value} if isinstance(value, str) and _is_plugin(place.hint) else value
    if place.at == ("backbone",) and isinstance(named, dict) and set(named) == {TAG}:
        known = candidates(BackboneSpec).get(named[TAG])
        named = named | ({} if known is None else _json_fields(known, _rate(root)))
    try:
        spec = from_json(named, place.hint)
    except SpecError:
        return named
    data = to_json(spec)
    found = [leaf for leaf in leaves(spec, place.at) if leaf.key in recipe]
    given = [leaf.key for leaf in found if in_data(value, leaf.path[len(place.at) :])]
    together = [key for group in GROUPS if set(group) & set(given) for key in group]
    for leaf in found:
        if place.at != ("backbone",) and leaf.key not in (*given, *together, TARGETS):
            _put(data, leaf.path[len(place.at) :], recipe[leaf.key])
    return data


def _json_fields(backbone: type[BackboneSpec], rate: Rate | None) -> dict[str, Any]:
    return {name: plain(value) for name, value in backbone_fields(backbone, rate).items()}


def _put(data: Any, path: Path, value: Any) -> None:
    for part in path[:-1]:
        data = data[part]
    data[path[-1]] = plain(value)


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
