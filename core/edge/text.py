"""Specs as JSON text: stable to write, strict to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from ..errors import UserError
from .convert import from_json, to_json

T = TypeVar("T")


def dumps(spec: Any) -> str:
    """Give a spec as JSON text: fields in the order of their class, equal specs to the byte."""
    return json.dumps(to_json(spec), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def loads(text: str, cls: type[T], *, where: str = "JSON") -> T:
    """Give the spec that JSON text stands for.

    Raises:
        UserError: the text is no JSON; `where` says what was read.
        SpecError: with every fault of the spec.
    """
    return from_json(parse(text, where=where), cls)


def parse(text: str, *, where: str = "JSON") -> Any:
    """Give the data of JSON text; a key given twice, NaN and Infinity are refused.

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
