"""What is checked where a plugin is called: the shape of what it returned, at no cost worth noting.

Only shapes are looked at, never values, so that no device is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..errors import ContractError, plugin_label


def check_shape(
    plugin: object, what: str, value: object, expected: Sequence[int], letters: str
) -> None:
    """Raise ContractError if what a plugin returned is no tensor of a shape.

    Args:
        plugin: that returned it.
        what: it is, as in "the velocity".
        value: as returned.
        expected: its shape.
        letters: what each number is, as in "B C K H W".
    """
    if not isinstance(value, Tensor):
        raise ContractError(
            f"{plugin_label(plugin)}: {what}: it is a {type(value).__name__}, but a tensor "
            f"[{letters}] {list(expected)} is expected"
        )
    if tuple(value.shape) != tuple(expected):
        raise ContractError(
            f"{plugin_label(plugin)}: {what}: the shape is {list(value.shape)}, but "
            f"[{letters}] {list(expected)} is expected"
        )


def check_type(plugin: object, what: str, value: object, *expected: type) -> None:
    """Raise ContractError if what a plugin returned is of none of the classes `expected`."""
    if not isinstance(value, expected):
        names = " or ".join(cls.__name__ for cls in expected)
        raise ContractError(
            f"{plugin_label(plugin)}: {what}: it is a {type(value).__name__}, but a {names} is "
            "expected"
        )
