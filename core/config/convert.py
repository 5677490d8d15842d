"""Specs to JSON and back, with cattrs; plugins are told apart by `type` (design §4)."""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin

import attrs
from attrs import Attribute, frozen
from cattrs import Converter
from cattrs.errors import BaseValidationError, ClassValidationError, IterableValidationError

from ..errors import UserError
from ..interfaces.spec import PluginSpec
from ..registry import nearest, registry
from ..values.grid import Rate
from .faults import SpecError, at, faults, not_among, shown, unknown_field, wanted_type

# ⟦core/edge/hints.py⟧ Types of the fields of specs, resolved, and what they are made of.


def fields(cls: type[Any]) -> list[Attribute[Any]]:
    """Return the fields of a spec class that its constructor takes."""
    return [a for a in attrs.fields(cast(Any, cls)) if a.init]


def hints(cls: type[Any]) -> dict[str, Any]:
    """Return the resolved type of every field of a spec class, in the order of the fields.

    Raises:
        UserError: an annotation names something that its module does not have at run time.
    """
    resolved = _resolved(cast(Any, cls))
    return {a.name: resolved[a.name] for a in fields(cls)}


@cache
def _resolved(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise UserError(f"the spec class {cls.__qualname__} cannot be read: {error}") from error


def optional(hint: Any) -> tuple[Any, bool]:
    """Return a hint without `None`, and whether it had it."""
    if not is_union(hint):
        return hint, False
    rest = [member for member in get_args(hint) if member is not types.NoneType]
    bare = rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007 (made at run time)
    return bare, len(rest) < len(get_args(hint))


def member_hints(hint: Any, count: int) -> list[Any]:
    """Return the type of every member of a tuple of `count`; None where the hint says nothing."""
    members = get_args(hint) or (None, ...)
    return [members[0]] * count if members[-1] is ... else list(members)


def is_union(hint: Any) -> bool:
    """Whether it is `A | B`."""
    return get_origin(hint) in (Union, types.UnionType)


def is_literal(hint: Any) -> bool:
    """Whether it is `Literal[...]`."""
    return get_origin(hint) is Literal


def is_tuple(hint: Any) -> bool:
    """Whether it is `tuple` or `tuple[...]`."""
    return hint is tuple or get_origin(hint) is tuple


# ⟦core/edge/primitives.py⟧ Strict readers of the plain values of JSON: nothing is guessed, no text becomes a number.


def read_int(value: Any, _: object = None) -> int:
    """Return a whole number; 3.0, "3" and true are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, not {shown(value)}")
    return value


def read_float(value: Any, _: object = None) -> float:
    """Return a finite number, whole or not; "3" and true are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, not {shown(value)}")
    return number


def read_bool(value: Any, _: object = None) -> bool:
    """Return true or false; 0 and "true" are neither."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {shown(value)}")
    return value


def read_str(value: Any, _: object = None) -> str:
    """Return text."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {shown(value)}")
    return value


def read_rate(value: Any, _: object = None) -> Rate:
    """Return the rate that text such as 4x4x2 stands for."""
    if not isinstance(value, str):
        raise ValueError(f"a rate is written HxWxT, such as 4x4x2, not {shown(value)}")
    return Rate.parse(value)


PRIMITIVES: dict[type[Any], Callable[[Any, object], Any]] = {
    bool: read_bool,
    int: read_int,
    float: read_float,
    str: read_str,
    Rate: read_rate,
}


# ⟦core/edge/read.py⟧ How JSON is read into specs: every fault is collected, with the place where it stands.

TAG = "type"


def teach_reading(converter: Converter) -> None:
    """Give a converter the hooks that read specs."""
    reader = _Reader(structure=converter.structure)
    converter.register_structure_hook_func(is_union, reader.union)
    converter.register_structure_hook_func(is_literal, _literal)
    converter.register_structure_hook_func(is_tuple, reader.sequence)
    converter.register_structure_hook_func(attrs.has, reader.spec)
    converter.register_structure_hook(PluginSpec, reader.plugin)
    for cls, read in PRIMITIVES.items():
        converter.register_structure_hook(cls, read)


def candidates(cls: type[PluginSpec]) -> dict[str, type[PluginSpec]]:
    """Return the spec classes that a field annotated with `cls` takes, by plugin name."""
    return {p.name: p.spec for p in registry().of(cls.kind) if issubclass(p.spec, cls)}


@frozen
class _Reader:
    structure: Callable[[Any, Any], Any]

    def plugin(self, value: Any, cls: type[PluginSpec]) -> PluginSpec:
        data = {TAG: value} if isinstance(value, str) else value
        if not isinstance(data, Mapping):
            raise ValueError(f"must be an object with a {TAG!r}, not {shown(value)}")
        try:
            chosen = choose(data, cls)
        except ValueError as error:
            raise ClassValidationError(cls.__name__, [at(error, TAG)], cls) from None
        return self.spec({k: v for k, v in data.items() if k != TAG}, chosen)

    def spec(self, value: Any, cls: type[T]) -> T:
        if not isinstance(value, Mapping):
            raise ValueError(f"must be an object with fields, not {shown(value)}")
        known = hints(cls)
        wrong = {str(k): _unknown(k, cls) for k in value if k not in known}
        owner, given = cls.__new__(cls), {}
        for attribute in fields(cls):
            name = attribute.name
            try:
                filled = self._field(value, attribute, known[name], owner)
            except Exception as error:  # a plugin's converter may raise anything
                wrong[name] = error
                continue
            object.__setattr__(owner, name, filled)
            if name in value:
                given[attribute.alias or name] = filled
        wrong |= _refused(owner, [a for a in fields(cls) if a.name in value], wrong)
        if wrong:
            noted = [at(wrong[name], name) for name in sorted(wrong, key=_rank(known))]
            raise ClassValidationError(cls.__name__, noted, cls)
        return cls(**given)

    def _field(
        self, data: Mapping[Any, Any], attribute: Attribute[Any], hint: Any, owner: Any
    ) -> Any:
        if attribute.name in data:
            return self.structure(data[attribute.name], hint)
        default: Any = attribute.default
        if default is attrs.NOTHING:
            raise ValueError("missing; it has no default")
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            return default.factory(owner) if default.takes_self else default.factory()
        return default

    def sequence(self, value: Any, hint: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise ValueError(f"must be a list, not {shown(value)}")
        members = member_hints(hint, len(value))
        if len(members) != len(value):
            raise ValueError(f"must be a list of {len(members)}, not of {len(value)}")
        read: list[Any] = []
        wrong: list[Exception] = []
        for index, (member, known) in enumerate(zip(value, members, strict=True)):
            try:
                read.append(self.structure(member, known) if known else member)
            except Exception as error:  # a plugin's validator may raise anything
                wrong.append(at(error, index))
        if wrong:
            raise IterableValidationError("list", wrong, tuple)
        return tuple(read)

    def _only(self, value: Any, bare: Any, nullable: bool) -> Any:
        try:
            return self.structure(value, bare)
        except ValueError as error:
            if not nullable or bare not in PRIMITIVES or bare is Rate:
                raise
            raise ValueError(str(error).replace(", not ", " or null, not ", 1)) from error

    def union(self, value: Any, hint: Any) -> Any:
        bare, nullable = optional(hint)
        if value is None and nullable:
            return None
        if not is_union(bare):
            return self._only(value, bare, nullable)
        for member in get_args(bare):
            try:
                return self.structure(value, member)
            except (ValueError, BaseValidationError):
                continue
        raise ValueError(f"must be {wanted_type(get_args(bare))}, not {shown(value)}")


def choose(data: Mapping[Any, Any], cls: type[PluginSpec]) -> type[PluginSpec]:
    """Return the spec class that `type` names among those that a field annotated with `cls` takes.

    Raises:
        ValueError: it names none of them, or is missing where several could be meant.
    """
    known = candidates(cls)
    name = data.get(TAG)
    if TAG not in data and cls in known.values():
        return cls
    if isinstance(name, str) and name in known:
        return known[name]
    listed = ", ".join(nearest(str(name), known)) or "none"
    if TAG not in data:
        raise ValueError(f"missing; known: {listed}")
    if isinstance(name, str) and any(p.name == name for p in registry().of(cls.kind)):
        raise ValueError(f"must be {listed} here, not {shown(name)}")
    broken = "".join(f"; not loaded: {line}" for line in registry().broken)
    raise ValueError(f"unknown {cls.kind} {shown(name)}; known: {listed}{broken}")


def _refused(
    owner: Any, given: list[Attribute[Any]], before: Mapping[str, Exception]
) -> dict[str, Exception]:
    """Return what the validators refuse, one by one: the class itself would stop at the first."""
    found: dict[str, Exception] = {}
    for attribute in given:
        if attribute.name in before or attribute.validator is None or attribute.converter:
            continue
        try:
            attribute.validator(owner, attribute, getattr(owner, attribute.name))
        except AttributeError as error:
            if not before:  # else it looked at a field that is missing for its own fault
                found[attribute.name] = error
        except Exception as error:  # a plugin's validator may raise anything
            found[attribute.name] = error
    return found


def _rank(known: Mapping[str, Any]) -> Callable[[str], int]:
    order = list(known)
    return lambda name: order.index(name) if name in known else len(order)


def _unknown(key: Any, cls: type[Any]) -> Exception:
    others = [TAG] if issubclass(cls, PluginSpec) else []
    return ValueError(unknown_field(str(key), hints(cls), *others))


def _literal(value: Any, hint: Any) -> Any:
    for option in get_args(hint):
        if type(option) is type(value) and option == value:
            return value
    raise ValueError(not_among(value, get_args(hint)))


T = TypeVar("T")


def to_json(spec: Any) -> dict[str, Any]:
    """Return a spec as plain JSON: plugins with `type` first, rates as `2x2x2`, tuples as lists.

    Raises:
        UserError: no plugin has the class of a plugin's spec.
    """
    return cast("dict[str, Any]", _converter().unstructure(spec))


def from_json(data: Any, cls: type[T]) -> T:
    """Return the spec that JSON stands for; a plugin may also stand as its bare name.

    `cls` may be a base, such as CompressorSpec: the class then follows from `type`.

    Raises:
        SpecError: with every fault of the data, each as `path: message`.
    """
    try:
        return _converter().structure(data, cls)
    except Exception as error:  # a validator of a plugin's spec may raise anything
        root = getattr(cls, "kind", "") or getattr(cls, "__name__", "spec").lower()
        raise SpecError(faults(error, root=root)) from error


@functools.cache
def _converter() -> Converter:
    """Return the converter; plugins are looked up when it is used, so it outlives a registry."""
    made = Converter(detailed_validation=True)
    teach_reading(made)
    made.register_unstructure_hook_factory(is_union, _union_writer)
    made.register_unstructure_hook_factory(is_tuple, _tuple_writer)
    made.register_unstructure_hook_func(attrs.has, _write_spec)
    made.register_unstructure_hook(Rate, str)
    made.register_unstructure_hook(float, lambda x: float(x) if type(x) is int else x)
    return made


def _write_spec(spec: Any) -> dict[str, Any]:
    write = _converter().unstructure
    tag = {TAG: registry().find(spec).name} if isinstance(spec, PluginSpec) else {}
    return tag | {n: write(getattr(spec, n), h) for n, h in hints(type(spec)).items()}


def _union_writer(hint: Any) -> Callable[[Any], Any]:
    bare, _ = optional(hint)

    def write(value: Any) -> Any:
        known = None if value is None or is_union(bare) else bare
        return _converter().unstructure(value, known)

    return write


def _tuple_writer(hint: Any) -> Callable[[Any], Any]:
    def write(value: tuple[Any, ...]) -> list[Any]:
        pairs = zip(value, member_hints(hint, len(value)), strict=False)
        return [_converter().unstructure(member, known) for member, known in pairs]

    return write


# ⟦core/edge/text.py⟧ Specs as JSON text: stable to write, strict to read.


def dumps(spec: Any) -> str:
    """Return a spec as JSON text: fields in the order of their class, equal specs to the byte."""
    return json.dumps(to_json(spec), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def loads(text: str, cls: type[T], *, where: str = "JSON") -> T:
    """Return the spec that JSON text stands for.

    Raises:
        UserError: the text is no JSON; `where` says what was read.
        SpecError: with every fault of the spec.
    """
    return from_json(parse(text, where=where), cls)


def parse(text: str, *, where: str = "JSON") -> Any:
    """Return the data of JSON text; a key given twice, NaN and Infinity are refused.

    Raises:
        UserError: in one line, with `where` and the line of the text.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: line {error.lineno} is no JSON: {error.msg}") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply") from error


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return found


def refuse(constant: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads but JSON does not have."""
    raise ValueError(f"{constant} is no number of JSON")
