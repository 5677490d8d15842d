"""How JSON is read into specs: every fault is collected, with the place where it stands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

import attrs
from attrs import Attribute, frozen
from cattrs import Converter
from cattrs.errors import BaseValidationError, ClassValidationError, IterableValidationError

from ..grid import Rate
from ..registry import nearest, registry
from ..spec import PluginSpec
from .faults import at, not_among, shown, unknown_field, wanted_type
from .hints import fields, hints, is_literal, is_tuple, is_union, member_hints, optional
from .primitives import PRIMITIVES

T = TypeVar("T")
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
    """Give the spec classes that a field annotated with `cls` takes, by plugin name."""
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
    """Give the spec class that `type` names among those that a field annotated with `cls` takes.

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
    """Give what the validators refuse, one by one: the class itself would stop at the first."""
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
