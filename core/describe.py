"""What `longtake list` and `longtake show` say, as plain data that JSON can carry.

Tables of context lengths are grid arithmetic: no weights, nothing built.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from .data.bucket import place
from .describe_print import print_plugins, print_show
from .edge import to_json
from .experiment import Experiment
from .grid import Geometry, Rate, Rounding, Size3
from .hooks import KINDS
from .registry import registry

__all__ = ["context_lengths", "list_plugins", "print_plugins", "print_show", "rate_table", "show"]

SECONDS = (5, 20, 60)
RATES = ("2x2x1", "2x2x2", "2x2x4", "4x4x2", "2x2x8")
WIDE = (1080, 1920)  # shape of the video that context lengths are given for


def list_plugins() -> dict[str, Any]:
    """Give all that plugs in: plugins, experiments, geometries, and what failed to load."""
    found = registry()
    plugins = [
        {
            "kind": kind,
            "name": plugin.name,
            "summary": plugin.summary,
            "distribution": found.origins[kind, plugin.name],
        }
        for kind in KINDS
        for plugin in found.of(kind)
    ]
    experiments = [
        {
            "name": name,
            "target": target,
            "weights": name in found.weights,
            "distribution": found.origins["experiments", name],
        }
        for name, target in sorted(found.experiments.items())
    ]
    return {
        "plugins": plugins,
        "experiments": experiments,
        "geometries": sorted(found.geometries),
        "broken": list(found.broken),
    }


def show(name: str, experiment: Experiment) -> dict[str, Any]:
    """Give an experiment resolved, its fields, and its context lengths.

    `rates` is the table of method.md §2 for every known backbone at 480×832 and for the
    experiment's own, at the frame rate of each.
    """
    own = experiment.backbone.geometry
    height, width = _frame(experiment)
    known = [(key, shapes, 480, 832) for key, shapes in sorted(registry().geometries.items())]
    tables = [(to_json(experiment.backbone)["type"], own, height, width), *known]
    return {
        "name": name,
        "experiment": to_json(experiment),
        "context": context_lengths(experiment),
        "rates": [rate_table(*table) for table in tables],
        "fields": list(_fields(experiment, "")),
    }


def context_lengths(experiment: Experiment) -> dict[str, Any]:
    """Give the tokens of the experiment's memory by length of history, at its cache size."""
    shapes = experiment.backbone.geometry
    height, width = _frame(experiment)
    return {
        "height": height,
        "width": width,
        "fps": shapes.fps,
        "rows": [_context(experiment, shapes, s, height, width) for s in SECONDS],
    }


def _frame(experiment: Experiment) -> tuple[int, int]:
    """Give height and width at which the experiment caches a 16:9 video."""
    cache, multiple = experiment.cache, experiment.backbone.geometry.multiple
    height, width = WIDE
    found = place(width, height, cache.area, multiple, cache.max_aspect)
    return found.height, found.width


def _context(
    experiment: Experiment, shapes: Geometry, seconds: int, height: int, width: int
) -> dict[str, Any]:
    size = shapes.latent_size(frames=shapes.frames(seconds), height=height, width=width)
    lengths = []
    for spec in experiment.compressors:
        length = registry().load(spec).context_length(spec, shapes, size)
        plugin = registry().find(spec).name
        lengths.append({"type": plugin, "tokens": length.tokens, "exact": length.exact})
    return {
        "seconds": seconds,
        "latents": size.time,
        "uncompressed": _uncompressed(shapes, size),
        "compressors": lengths,
        "tokens": sum(length["tokens"] for length in lengths),
        "exact": all(length["exact"] for length in lengths),
    }


def _uncompressed(shapes: Geometry, size: Size3) -> int:
    return Rate(height=1, width=1, time=1).token_grid(size, shapes.patch).cells


def rate_table(
    name: str, shapes: Geometry, height: int, width: int, *, seconds: float = 20.0
) -> dict[str, Any]:
    """Give tokens by compression rate, rounded down and up in space, at the geometry's own fps.

    `paper` counts T / r memory frames as the paper does, `ours` 1 + ⌈(T − 1) / r⌉, of which none
    of the past is dropped (design §2).
    """
    size = shapes.latent_size(frames=shapes.frames(seconds), height=height, width=width)
    return {
        "geometry": name,
        "height": height,
        "width": width,
        "fps": shapes.fps,
        "seconds": seconds,
        "latents": size.time,
        "rows": [_rate_row(text, shapes, size) for text in ("none", *RATES)],
    }


def _rate_row(text: str, shapes: Geometry, size: Size3) -> dict[str, Any]:
    rate = Rate.parse("1x1x1" if text == "none" else text)
    rows: dict[str, Any] = {"rate": text, "paper": {}, "ours": {}}
    rounding: Rounding
    for rounding in ("floor", "ceil"):
        grid = rate.token_grid(size, shapes.patch, rounding)
        rows["ours"][rounding] = grid.cells
        rows["paper"][rounding] = size.time // rate.time * grid.height * grid.width
    return rows


def _fields(spec: Any, path: str) -> Iterator[dict[str, Any]]:
    """Give path, value and meaning of every field of a spec and of those in it."""
    data = to_json(spec)
    for field in attrs.fields(type(spec)):
        where = f"{path}.{field.name}" if path else field.name
        value = getattr(spec, field.name)
        members = value if isinstance(value, tuple) else (value,)
        nested = [x for x in members if attrs.has(type(x)) and not isinstance(x, Rate)]
        entry: dict[str, Any] = {"path": where, "doc": field.metadata.get("doc", "")}
        yield entry if nested else entry | {"value": data[field.name]}
        for index, member in enumerate(nested):
            inner = f"{where}[{index}]" if isinstance(value, tuple) else where
            yield from _fields(member, inner)
