"""Whether weights are of the model that a spec asks for, and of which one they look to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...core.errors import UserError
from ...core.registry import registry
from ..dit.specs import DiTSpec


def check_numbers(name: str, found: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse weights whose numbers are not those of `config`; what only one of them says is free.

    Args:
        name: of the weights, for the message.
        found: numbers of the weights, by their names in diffusers' config.
        config: the numbers that the spec asks for.

    Raises:
        UserError: with what differs, and the published backbones that the weights look like.
    """
    both = [key for key in config if key in found]
    wrong = [key for key in both if plain(found[key]) != plain(config[key])]
    if wrong:
        lines = ", ".join(f"{k} is {plain(found[k])}, not {plain(config[k])}" for k in wrong)
        raise UserError(f"weights {name} do not fit the spec: {lines}{_hint(found)}")


def looks_like(found: Mapping[str, Any]) -> list[str]:
    """Give the names of the published backbones that have these numbers."""
    return [name for name, config in _published() if _within(found, config)]


def plain(value: Any) -> Any:
    """Give a value as JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _published() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for plugin in registry().of("backbone"):
        if issubclass(plugin.spec, DiTSpec) and plugin.spec.published:
            yield plugin.name, plugin.spec().config


def _within(found: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    both = [key for key in config if key in found]
    # a file's shapes do not tell all numbers, but what few share says nothing
    return len(both) > 3 and all(plain(found[key]) == plain(config[key]) for key in both)


def _hint(found: Mapping[str, Any]) -> str:
    if names := looks_like(found):
        return f"; they look like {' or '.join(names)}"
    ends = found.get("in_channels"), found.get("out_channels")
    if found.get("image_dim") or (None not in ends and ends[0] != ends[1]):
        return "; they look like an image-to-video model, and text-to-video is asked for"
    return ""
