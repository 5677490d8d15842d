"""What is wrong with a spec, in lines for the user.

cattrs raises a tree of exceptions and hides what a validator said; `faults` walks the tree and
returns one line `path: message` for each leaf.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar

from attrs import Attribute
from cattrs import AttributeValidationNote, IterableValidationNote
from cattrs.errors import BaseValidationError

from ..errors import LongtakeError, UserError
from ..tools.words import closest, names_like

E = TypeVar("E", bound=BaseException)
DEPTH = 3  # of lists within lists that messages show
_COMPARISON = re.compile(r"'\w+' must be (<=|>=|<|>) (\S+): (.*)", re.DOTALL)
_LENGTH = re.compile(r"Length of '\w+' must be (<=|>=|<|>) (\S+): (.*)", re.DOTALL)
_TYPES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


class SpecError(UserError):
    """A spec that cannot be used.

    Attributes:
        faults: every fault as `path: message`; the text of the error is these lines.
    """

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(dict.fromkeys(faults))
        super().__init__("\n".join(self.faults))


def located(error: E, place: str | int) -> E:
    """Return the error with a note of the field or the index that it is about."""
    if isinstance(place, int):
        error.add_note(IterableValidationNote(f"at {place}", place, object))
    else:
        error.add_note(AttributeValidationNote(f"at {place}", place, object))
    return error


def faults(error: BaseException, path: str = "", *, root: str = "spec") -> list[str]:
    """Return a line `path: message` for every leaf of a tree of exceptions.

    `path` is where the tree stands; where that is nowhere yet, `root` stands for it.
    """
    if isinstance(error, BaseValidationError):
        return [
            line
            for inner in error.exceptions
            for line in faults(inner, join(path, _place(inner)), root=root)
        ]
    return [f"{path or root}: {message(error)}"]


def join(path: str, place: str | int | None) -> str:
    """Return the path with a field (`a.b`) or an index (`a[0]`) behind it."""
    if place is None:
        return path
    if isinstance(place, int):
        return f"{path}[{place}]"
    return f"{path}.{place}" if path else place


def _place(error: BaseException) -> str | int | None:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, AttributeValidationNote):
            return note.name
        if isinstance(note, IterableValidationNote):
            return note.index
    return None


def message(error: BaseException) -> str:
    """Return what an exception says, in one line; those of attrs' own validators in plain words."""
    if len(error.args) == 4 and isinstance(error.args[1], Attribute):
        return _attrs_message(error)
    text = " ".join(str(error).split())
    for pattern, subject in ((_COMPARISON, "must be"), (_LENGTH, "its length must be")):
        if match := pattern.fullmatch(text):
            return f"{subject} {match[1]} {match[2]}, not {match[3]}"
    if isinstance(error, ValueError | TypeError | LongtakeError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _attrs_message(error: BaseException) -> str:
    _, _, expected, value = error.args
    if isinstance(error, TypeError):
        return f"must be {type_in_words(expected)}, not {in_json(value)}"
    if isinstance(expected, re.Pattern):
        return f"must match {expected.pattern}, not {in_json(value)}"
    return not_among(value, expected)


def not_among(value: Any, options: Iterable[Any]) -> str:
    """Return the message that a value is none of the options, and which one it resembles."""
    known = list(options)
    listed = ", ".join(x if isinstance(x, str) else in_json(x) for x in known)
    like = closest(str(value), [x for x in known if isinstance(x, str)])
    hint = f"; did you mean {like}?" if like else ""
    return f"must be one of {listed}, not {in_json(value)}{hint}"


def unknown_field(name: str, known: Iterable[str], *others: str, what: str = "field") -> str:
    """Return the message that there is no such field: with the nearest, or with those there are.

    Args:
        name: of the field that was asked for.
        known: the fields that there are.
        others: further names that may be meant, and are not listed.
        what: what they are called: `field`, of an experiment, or another word.
    """
    names = list(known)
    like = closest(name, [*names, *others])
    if like:
        return f"unknown {what}; did you mean {like}?"
    command = "longtake show EXPERIMENT --fields" if what == "field" else ""
    there = names_like(name, names, command) if names else f"no {what}s"
    return f"unknown {what}; there are {there}"


def type_in_words(types: Any) -> str:
    """Return a type (or a tuple of them) in words."""
    if isinstance(types, tuple):
        return " or ".join(type_in_words(each) for each in types)
    return _TYPES.get(types) or f"a {getattr(types, '__name__', types)}"


def in_json(value: Any, depth: int = DEPTH) -> str:
    """Return a value as messages show it: short, and as JSON writes it.

    Args:
        value: of JSON.
        depth: lists within lists that are shown; deeper ones are `a list`.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        if len(value) > 4 or not depth:
            return "a list"
        return "[" + ", ".join(in_json(x, depth - 1) for x in value) + "]"
    text = repr(value) if isinstance(value, str | int | float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
