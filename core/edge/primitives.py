"""Strict readers of the plain values of JSON: nothing is guessed, no text becomes a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..grid import Rate
from .faults import shown


def read_int(value: Any, _: object = None) -> int:
    """Give a whole number; 3.0, "3" and true are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a whole number, not {shown(value)}")
    return value


def read_float(value: Any, _: object = None) -> float:
    """Give a finite number, whole or not; "3" and true are none."""
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
    """Give true or false; 0 and "true" are neither."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {shown(value)}")
    return value


def read_str(value: Any, _: object = None) -> str:
    """Give text."""
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {shown(value)}")
    return value


def read_rate(value: Any, _: object = None) -> Rate:
    """Give the rate that text such as 4x4x2 stands for."""
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
