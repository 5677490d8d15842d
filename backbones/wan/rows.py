"""Some samples of a batch, out of anything that has the batch first in every tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor


def take_rows(value: Any, rows: Tensor) -> Any:
    """Give the same value with the samples `rows` alone.

    Args:
        value: a tensor `[B, ...]`, or a tuple, mapping or attrs value of such; other things, and
            tensors of no sample (an empty cache), are given back as they are.
        rows: indices, int64 `[B']`.
    """
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.shape[0] else value
    if isinstance(value, tuple):
        members = [take_rows(member, rows) for member in value]
        return type(value)(*members) if type(value) is not tuple else tuple(members)
    if isinstance(value, Mapping):
        return {name: take_rows(member, rows) for name, member in value.items()}
    if attrs.has(type(value)):
        fields = attrs.fields(type(value))
        return attrs.evolve(
            value, **{f.name: take_rows(getattr(value, f.name), rows) for f in fields}
        )
    return value
