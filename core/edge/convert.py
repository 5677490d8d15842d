"""Specs to JSON and back, with cattrs; plugins are told apart by `type` (design §4)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import attrs
from cattrs import Converter

from ..grid import Rate
from ..registry import registry
from ..spec import PluginSpec
from .faults import SpecError, faults
from .hints import hints, is_tuple, is_union, member_hints, optional
from .read import TAG, teach_reading

T = TypeVar("T")


def to_json(spec: Any) -> dict[str, Any]:
    """Give a spec as plain JSON: plugins with `type` first, rates as `2x2x2`, tuples as lists.

    Raises:
        UserError: no plugin has the class of a plugin's spec.
    """
    return cast("dict[str, Any]", _converter().unstructure(spec))


def from_json(data: Any, cls: type[T]) -> T:
    """Give the spec that JSON stands for; a plugin may also stand as its bare name.

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
    """Give the converter; plugins are looked up when it is used, so it outlives a registry."""
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
