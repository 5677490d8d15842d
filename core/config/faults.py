"""What is wrong with a spec, in lines for the person at the keyboard.

cattrs gives a tree of exceptions and hides what a validator said; this walks the tree and gives
one line `path: message` for each leaf.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, TypeVar

from attrs import Attribute
from cattrs import AttributeValidationNote, IterableValidationNote
from cattrs.errors import BaseValidationError

from ..errors import LongtakeError, UserError

E = TypeVar("E", bound=BaseException)
_COMPARED = re.compile(r"'\w+' must be (<=|>=|<|>) (\S+): (.*)", re.DOTALL)
_MEASURED = re.compile(r"Length of '\w+' must be (<=|>=|<|>) (\S+): (.*)", re.DOTALL)
_NAMES = {
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


def at(error: E, place: str | int) -> E:
    """Return the error, noted to stand at a field or an index of what is being read."""
    if isinstance(place, int):
        error.add_note(IterableValidationNote(f"at {place}", place, object))
    else:
        error.add_note(AttributeValidationNote(f"at {place}", place, object))
    return error


def faults(error: BaseException, path: str = "", *, root: str = "spec") -> list[str]:
    """Return a line for every leaf of a tree of exceptions; `root` names the place without a path."""
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
    """Return what an exception says as one line; the stock validators of attrs made human."""
    if len(error.args) == 4 and isinstance(error.args[1], Attribute):
        return _stock(error)
    said = " ".join(str(error).split())
    for pattern, subject in ((_COMPARED, "must be"), (_MEASURED, "its length must be")):
        if found := pattern.fullmatch(said):
            return f"{subject} {found[1]} {found[2]}, not {found[3]}"
    if isinstance(error, ValueError | TypeError | LongtakeError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _stock(error: BaseException) -> str:
    _, _, wanted, value = error.args
    if isinstance(error, TypeError):
        return f"must be {wanted_type(wanted)}, not {shown(value)}"
    if isinstance(wanted, re.Pattern):
        return f"must match {wanted.pattern}, not {shown(value)}"
    return not_among(value, wanted)


def not_among(value: Any, options: Iterable[Any]) -> str:
    """Say that a value is none of the options, and which one it resembles."""
    known = list(options)
    listed = ", ".join(x if isinstance(x, str) else shown(x) for x in known)
    like = close(str(value), [x for x in known if isinstance(x, str)])
    hint = f"; did you mean {like}?" if like else ""
    return f"must be one of {listed}, not {shown(value)}{hint}"


def unknown_field(name: str, known: Iterable[str], *others: str) -> str:
    """Say that there is no such field, with the nearest one (of `others` too) or all there are."""
    names = list(known)
    like = close(name, [*names, *others])
    if like:
        return f"unknown field; did you mean {like}?"
    return f"unknown field; there {'are ' + ', '.join(names) if names else 'are no fields'}"


def close(name: str, known: list[str]) -> str | None:
    """Return the known name that a misspelt one stands for, or None."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return found[0] if found else None


def wanted_type(wanted: Any) -> str:
    """Return a type (or a tuple of them) in words."""
    if isinstance(wanted, tuple):
        return " or ".join(wanted_type(each) for each in wanted)
    return _NAMES.get(wanted) or f"a {getattr(wanted, '__name__', wanted)}"


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, and as JSON writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list" if len(value) > 4 else "[" + ", ".join(shown(x) for x in value) + "]"
    said = repr(value) if isinstance(value, str | int | float) else str(value)
    return said if len(said) <= 60 else said[:57] + "..."
