"""Specs to JSON and back, with cattrs; plugins are told apart by `type` (design §4).

Reading is strict: no text becomes a number, nothing is guessed, and every fault is collected with
the place where it stands. Writing is stable: equal specs give equal text, to the byte.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin

import attrs
from attrs import Attribute, frozen
from cattrs import Converter
from cattrs.errors import BaseValidationError, ClassValidationError, IterableValidationError

from ..errors import UserError, is_utf8, printable
from ..interfaces.spec import PluginSpec
from ..registry import LIST, registry
from ..tools.words import names_like
from ..values.grid import Rate
from .faults import SpecError, faults, in_json, located, not_among, type_in_words, unknown_field

T = TypeVar("T")
P = TypeVar("P", bound=PluginSpec)
TAG = "type"


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
        return json.loads(text, object_pairs_hook=_unique, parse_constant=refuse_constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: line {error.lineno} is no JSON: {error.msg}") from error
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply") from error


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice in one object")
    return dict(pairs)


def refuse_constant(constant: str) -> NoReturn:
    """Raise ValueError for NaN and Infinity, which Python reads but JSON does not have."""
    raise ValueError(f"{constant} is no number of JSON")


def to_json(spec: Any) -> dict[str, Any]:
    """Return a spec as plain JSON: plugins with `type` first, rates as `2x2x2`, tuples as lists.

    Raises:
        UserError: no plugin has the class of a plugin's spec.
    """
    return cast("dict[str, Any]", _converter().unstructure(spec))


def identity(spec: Any) -> dict[str, Any]:
    """Return a spec as `to_json` has it, without what only says how numbers are worked out.

    Those are the fields that equality of specs leaves out (`eq=False`), such as `kernels`: they may
    change when a run is resumed, and no file's header holds them.
    """
    return cast("dict[str, Any]", _compared(spec, to_json(spec)))


def _compared(value: Any, data: Any) -> Any:
    if isinstance(data, list):
        return [_compared(member, one) for member, one in zip(value, data, strict=True)]
    if not (isinstance(data, dict) and attrs.has(type(value))):
        return data
    left_out = {field.name for field in attrs.fields(type(value)) if not field.eq}
    return {
        key: _compared(getattr(value, key, None), one)
        for key, one in data.items()
        if key not in left_out
    }


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
    converter = Converter(detailed_validation=True)
    reader = _Reader(structure=converter.structure)
    converter.register_structure_hook_func(is_union, reader.union)
    converter.register_structure_hook_func(is_literal, _read_literal)
    converter.register_structure_hook_func(is_tuple, reader.sequence)
    converter.register_structure_hook_func(attrs.has, reader.spec)
    converter.register_structure_hook(PluginSpec, reader.plugin)
    for cls, read in PRIMITIVES.items():
        converter.register_structure_hook(cls, read)
    converter.register_unstructure_hook_factory(is_union, _union_writer)
    converter.register_unstructure_hook_factory(is_tuple, _tuple_writer)
    converter.register_unstructure_hook_func(attrs.has, _write_spec)
    converter.register_unstructure_hook(Rate, str)
    converter.register_unstructure_hook(float, lambda x: float(x) if type(x) is int else x)
    return converter


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


@frozen
class _Reader:
    """Reads JSON into specs; `structure` reads a value of any other type."""

    structure: Callable[[Any, Any], Any]

    def plugin(self, value: Any, cls: type[PluginSpec]) -> PluginSpec:
        data = {TAG: value} if isinstance(value, str) else value
        if not isinstance(data, Mapping):
            raise ValueError(f"must be an object with a {TAG!r}, not {in_json(value)}")
        try:
            chosen = choose(data, cls)
        except ValueError as error:
            raise ClassValidationError(cls.__name__, [located(error, TAG)], cls) from None
        return self.spec({k: v for k, v in data.items() if k != TAG}, chosen)

    def spec(self, value: Any, cls: type[T]) -> T:
        if not isinstance(value, Mapping):
            raise ValueError(f"must be an object with fields, not {in_json(value)}")
        types_of = hints(cls)
        errors = {str(key): _unknown_field(key, cls) for key in value if key not in types_of}
        # Validators and defaults may look at other fields of the spec: here they find them.
        owner, arguments = cls.__new__(cls), {}
        for attribute in fields(cls):
            name = attribute.name
            try:
                field = self._field(value, attribute, types_of[name], owner)
            except Exception as error:  # a plugin's converter may raise anything
                errors[name] = error
                continue
            object.__setattr__(owner, name, field)
            if name in value:
                arguments[attribute.alias or name] = field
        errors |= _refused(owner, [a for a in fields(cls) if a.name in value], errors)
        if errors:
            order = [*types_of, *(name for name in errors if name not in types_of)]
            ordered = [located(errors[name], name) for name in order if name in errors]
            raise ClassValidationError(cls.__name__, ordered, cls)
        return cls(**arguments)

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
            raise ValueError(f"must be a list, not {in_json(value)}")
        members = member_hints(hint, len(value))
        if len(members) != len(value):
            raise ValueError(f"must be a list of {len(members)}, not of {len(value)}")
        result: list[Any] = []
        errors: list[Exception] = []
        for index, (member, member_hint) in enumerate(zip(value, members, strict=True)):
            try:
                result.append(self.structure(member, member_hint) if member_hint else member)
            except Exception as error:  # a plugin's validator may raise anything
                errors.append(located(error, index))
        if errors:
            raise IterableValidationError("list", errors, tuple)
        return tuple(result)

    def union(self, value: Any, hint: Any) -> Any:
        bare, nullable = optional(hint)
        if value is None and nullable:
            return None
        if not is_union(bare):
            return self._member(value, bare, nullable)
        for member in get_args(bare):
            try:
                return self.structure(value, member)
            except (ValueError, BaseValidationError):
                continue
        raise ValueError(f"must be {type_in_words(get_args(bare))}, not {in_json(value)}")

    def _member(self, value: Any, bare: Any, nullable: bool) -> Any:
        """Read a value of the one type of a union; the message says that null is one, too."""
        try:
            return self.structure(value, bare)
        except ValueError as error:
            if not nullable or bare not in PRIMITIVES or bare is Rate:
                raise
            raise ValueError(str(error).replace(", not ", " or null, not ", 1)) from error


def candidates(cls: type[P]) -> dict[str, type[P]]:
    """Return the spec classes that a field annotated with `cls` takes, by plugin name."""
    return {p.name: p.spec for p in registry().of(cls.kind) if issubclass(p.spec, cls)}


def choose(data: Mapping[Any, Any], cls: type[P]) -> type[P]:
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
    listed = names_like(str(name), known, LIST)
    if TAG not in data:
        raise ValueError(f"missing; known: {listed}")
    if isinstance(name, str) and any(p.name == name for p in registry().of(cls.kind)):
        raise ValueError(f"must be {listed} here, not {in_json(name)}")
    reason = registry().why_not_loaded(cls.kind, str(name))
    if reason:
        raise ValueError(reason)
    broken = "".join(f"; not loaded: {line}" for line in registry().broken)
    raise ValueError(f"unknown {cls.kind} {in_json(name)}; known: {listed}{broken}")


def _refused(
    owner: Any, attributes: list[Attribute[Any]], before: Mapping[str, Exception]
) -> dict[str, Exception]:
    """Return what the validators refuse, one by one: the class itself would stop at the first."""
    errors: dict[str, Exception] = {}
    for attribute in attributes:
        if attribute.name in before or attribute.validator is None or attribute.converter:
            continue
        try:
            attribute.validator(owner, attribute, getattr(owner, attribute.name))
        except AttributeError as error:
            if not before:  # else it looked at a field that is missing for its own fault
                errors[attribute.name] = error
        except Exception as error:  # a plugin's validator may raise anything
            errors[attribute.name] = error
    return errors


def _unknown_field(key: Any, cls: type[Any]) -> Exception:
    others = [TAG] if issubclass(cls, PluginSpec) else []
    return ValueError(unknown_field(str(key), hints(cls), *others))


def _read_literal(value: Any, hint: Any) -> Any:
    for option in get_args(hint):
        if type(option) is type(value) and option == value:
            return value
    raise ValueError(not_among(value, get_args(hint)))


def read_int(value: Any, _: object = None) -> int:
    """Return a whole number.

    Raises:
        ValueError: it is none, such as 3.0, "3" and true.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, not {in_json(value)}")
    return value


def read_float(value: Any, _: object = None) -> float:
    """Return a finite number, whole or not.

    Raises:
        ValueError: it is none, such as "3" and true.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number, not {in_json(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"must be a finite number, not {in_json(value)}")
    return number


def read_bool(value: Any, _: object = None) -> bool:
    """Return true or false.

    Raises:
        ValueError: it is neither, such as 0 and "true".
    """
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {in_json(value)}")
    return value


def read_str(value: Any, _: object = None) -> str:
    """Return text.

    Raises:
        ValueError: it is none, or holds half a character: such text cannot be written in UTF-8.
    """
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {in_json(value)}")
    if not is_utf8(value):
        raise ValueError(f"must be text in UTF-8, not {in_json(printable(value))}")
    return value


def read_rate(value: Any, _: object = None) -> Rate:
    """Return the rate that text such as 4x4x2 stands for.

    Raises:
        ValueError: it is no text, or not written so.
    """
    if not isinstance(value, str):
        raise ValueError(f"a rate is written HxWxT, such as 4x4x2, not {in_json(value)}")
    return Rate.parse(value)


PRIMITIVES: dict[type[Any], Callable[[Any, object], Any]] = {
    bool: read_bool,
    int: read_int,
    float: read_float,
    str: read_str,
    Rate: read_rate,
}


def fields(cls: type[Any]) -> list[Attribute[Any]]:
    """Return the fields of a spec class that its constructor takes."""
    return [a for a in attrs.fields(cast(Any, cls)) if a.init]


def hints(cls: type[Any]) -> dict[str, Any]:
    """Return the resolved type of every field of a spec class, in the order of the fields.

    Raises:
        UserError: an annotation names something that its module does not have at run time.
    """
    resolved = _resolved_hints(cast(Any, cls))
    return {a.name: resolved[a.name] for a in fields(cls)}


@functools.cache
def _resolved_hints(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError as error:
        raise UserError(f"the spec class {cls.__qualname__} cannot be read: {error}") from error


def optional(hint: Any) -> tuple[Any, bool]:
    """Return a type without `None`, and whether it had it."""
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
    """Say whether a type is `A | B`."""
    return get_origin(hint) in (Union, types.UnionType)


def is_literal(hint: Any) -> bool:
    """Say whether a type is `Literal[...]`."""
    return get_origin(hint) is Literal


def is_tuple(hint: Any) -> bool:
    """Say whether a type is `tuple` or `tuple[...]`."""
    return hint is tuple or get_origin(hint) is tuple
