"""Types of the fields of specs, resolved, and what they are made of."""

from __future__ import annotations

import types
import typing
from functools import cache
from typing import Any, Literal, Union, cast, get_args, get_origin

import attrs
from attrs import Attribute

from ..errors import UserError


def fields(cls: type[Any]) -> list[Attribute[Any]]:
    """Give the fields of a spec class that its constructor takes."""
    return [a for a in attrs.fields(cast(Any, cls)) if a.init]


def hints(cls: type[Any]) -> dict[str, Any]:
    """Give the resolved type of every field of a spec class, in the order of the fields.

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
    """Give a hint without `None`, and whether it had it."""
    if not is_union(hint):
        return hint, False
    rest = [member for member in get_args(hint) if member is not types.NoneType]
    bare = rest[0] if len(rest) == 1 else Union[tuple(rest)]  # noqa: UP007 (made at run time)
    return bare, len(rest) < len(get_args(hint))


def member_hints(hint: Any, count: int) -> list[Any]:
    """Give the type of every member of a tuple of `count`; None where the hint says nothing."""
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
