"""The registry of plugins: what ships, installed distributions, single Python files (design §3)."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pluggy
from attrs import define, field

from . import hooks
from .errors import UserError
from .hooks import GROUP, KINDS, Plugin
from .interfaces.spec import PluginSpec
from .values.grid import Geometry

VARIABLE = "LONGTAKE_PLUGINS"
_SHIPPED: list[str] = []
_NAMED = {"experiments": str, "weights": Path, "geometries": Geometry}  # name: such a value


def ship(*modules: str) -> None:
    """Name the hook modules of the package itself; `longtake/__init__.py` calls this once."""
    _SHIPPED.extend(module for module in modules if module not in _SHIPPED)
    registry.cache_clear()


@define
class Registry:
    """All plugins, with what they name: experiments, weights and geometries.

    Attributes:
        plugins: by kind and name.
        origins: distribution of each plugin (experiment, ...), by kind and name.
        experiments: `module:attribute` by shipped name.
        weights: folders of shipped weights by experiment name.
        geometries: of published backbones by name.
        broken: one line for each distribution whose plugin failed to import.
    """

    plugins: dict[tuple[str, str], Plugin] = field(factory=dict)
    origins: dict[tuple[str, str], str] = field(factory=dict)
    experiments: dict[str, str] = field(factory=dict)
    weights: dict[str, Path] = field(factory=dict)
    geometries: dict[str, Geometry] = field(factory=dict)
    broken: list[str] = field(factory=list)

    def of(self, kind: str) -> list[Plugin]:
        """Return the plugins of a kind by name."""
        return [p for (k, _), p in sorted(self.plugins.items()) if k == kind]

    def get(self, kind: str, name: str) -> Plugin:
        """Return the plugin of that name.

        Raises:
            UserError: there is none; the message lists the known ones, nearest first.
        """
        plugin = self.plugins.get((kind, name))
        if plugin is None:
            known = [each.name for each in self.of(kind)]
            raise UserError(f"unknown {kind} {name!r}; known: {', '.join(nearest(name, known))}")
        return plugin

    def find(self, spec: PluginSpec | type[PluginSpec]) -> Plugin:
        """Return the plugin that a spec (or spec class) belongs to.

        Raises:
            UserError: no plugin registers that class.
        """
        cls = spec if isinstance(spec, type) else type(spec)
        for plugin in self.of(cls.kind):
            if plugin.spec is cls:
                return plugin
        raise UserError(f"no {cls.kind} plugin has the spec class {cls.__qualname__}")

    def load(self, spec: PluginSpec) -> Any:
        """Import and return the class that a spec belongs to."""
        return self.find(spec).load()


def build(spec: PluginSpec, *args: Any) -> Any:
    """Return the plugin of a spec, built as `cls(spec, *args)`."""
    return registry().load(spec)(spec, *args)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names, those most like `name` first."""
    return sorted(known, key=lambda k: -SequenceMatcher(None, name.lower(), k.lower()).ratio())


def origins(spec: Any) -> dict[str, str]:
    """Return where the third parties' plugins of a spec come from: distribution and version.

    A Python file stands by its path, with the hash of its text instead of a version.

    Args:
        spec: any attrs value, such as an experiment.
    """
    names = {registry().origins[p.kind, p.name] for p in map(registry().find, _plugin_specs(spec))}
    return {name: _version_of(name) for name in sorted(names - {"longtake"})}


def _plugin_specs(value: Any) -> Iterator[PluginSpec]:
    """Yield the plugins' specs in a value, however deep."""
    if isinstance(value, tuple):
        for member in value:
            yield from _plugin_specs(member)
    elif attrs.has(type(value)):
        if isinstance(value, PluginSpec):
            yield value
        for part in attrs.fields(type(value)):
            yield from _plugin_specs(getattr(value, part.name))


def _version_of(origin: str) -> str:
    if Path(origin).is_file():
        return f"sha256:{hashlib.sha256(Path(origin).read_bytes()).hexdigest()[:16]}"
    try:
        return version(origin)
    except (PackageNotFoundError, ValueError):
        return "unknown"


@functools.cache
def registry() -> Registry:
    """Return the registry, built at the first call: what ships, then third parties.

    `LONGTAKE_PLUGINS` (distribution names and Python files, separated by commas) names the only
    third parties to load; empty: none. One that fails is reported in `broken` and skipped.

    Raises:
        UserError: two plugins have one name; the message names both distributions.
    """
    result = Registry()
    for module in _SHIPPED:
        _collect(result, importlib.import_module(module), "longtake")
    for origin, module in third_parties():
        try:
            loaded = _import(module)
        except (Exception, SystemExit) as error:  # a stranger's import may raise anything
            result.broken.append(f"{origin}: {module} failed to import: {_line(error)}")
            continue
        _collect(result, loaded, origin)
    return result


def third_parties() -> list[tuple[str, str]]:
    """Return distribution and module of every third party, by name; the first on the path counts.

    Python files that LONGTAKE_PLUGINS names come last, under their own path.
    """
    variable = os.environ.get(VARIABLE)
    listed = None if variable is None else [name.strip() for name in variable.split(",")]
    files = [name for name in listed or () if name.endswith(".py")]
    names = None if listed is None else {_normalized(name) for name in listed if name}
    modules: dict[str, list[tuple[str, str]]] = {}
    for dist in distributions():
        points = [p.value for p in dist.entry_points if p.group == GROUP]
        name = str(dist.metadata["Name"]) if points else ""
        if points and (names is None or _normalized(name) in names):
            modules.setdefault(_normalized(name), [(name, value) for value in points])
    installed = [pair for _, pairs in sorted(modules.items()) for pair in pairs]
    return installed + [(name, name) for name in files]


def _normalized(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def _import(module: str) -> ModuleType:
    """Return a module by its dotted name, or by the path of its file where it ends in `.py`."""
    return import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)


def _collect(to: Registry, module: Any, origin: str) -> None:
    try:
        records, named = _offers(module)
    except (Exception, SystemExit) as error:  # a stranger's hooks may raise anything
        if origin == "longtake":
            raise
        to.broken.append(f"{origin}: its hooks failed: {_line(error)}")
        return
    for record in records:
        _add(to, record, origin)
    for kind, name, value in named:
        _add_name(to, kind, name, value, origin)


def _offers(module: Any) -> tuple[list[Plugin], list[tuple[str, str, Any]]]:
    """Return the records and the named values of a module; a misspelt hook is an error."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hooks)
    manager.register(module)
    manager.check_pending()
    hook = functools.partial(getattr, manager.hook)
    records = [(k, record) for k in KINDS for ps in hook(f"{GROUP}_{k}s")() for record in ps]
    for kind, record in records:
        _check_type(record, Plugin, f"{GROUP}_{kind}s gives Plugin records")
    mappings = [(kind, dict(values)) for kind in _NAMED for values in hook(f"{GROUP}_{kind}")()]
    named = [(kind, name, value) for kind, values in mappings for name, value in values.items()]
    for kind, name, value in named:
        _check_type(name, str, f"{GROUP}_{kind} gives names")
        _check_type(value, _NAMED[kind], f"{GROUP}_{kind} gives a {_NAMED[kind].__name__} by name")
    return [record for _, record in records], named


def _check_type(value: Any, expected: type[Any], promise: str) -> None:
    if not isinstance(value, expected):
        raise TypeError(f"{promise}, not {value!r}")


def _add_name(to: Registry, kind: str, name: str, value: Any, origin: str) -> None:
    if (kind, name) in to.origins:
        raise UserError(
            f"two plugins name {kind} {name!r}: {to.origins[kind, name]} and {origin}; "
            "uninstall one, or leave it out with LONGTAKE_PLUGINS"
        )
    getattr(to, kind)[name] = value
    to.origins[kind, name] = origin


def _add(to: Registry, plugin: Plugin, origin: str) -> None:
    key = (plugin.kind, plugin.name)
    if key in to.plugins:
        raise UserError(
            f"two plugins name a {plugin.kind} {plugin.name!r}: {to.origins[key]} "
            f"({to.plugins[key].target}) and {origin} ({plugin.target}); "
            "uninstall one, or leave it out with LONGTAKE_PLUGINS"
        )
    to.plugins[key] = plugin
    to.origins[key] = origin


def _line(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def plug_in(path: Path) -> None:
    """Add the plugins of a Python file to the registry, for as long as this process lives.

    `LONGTAKE_PLUGINS=path.py` does the same for every command.

    Raises:
        UserError: there is no such file, it fails, it has no hook, or a name is taken.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of plugins")
    try:
        module = _import(str(path))
        records, named = _offers(module)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise UserError(f"{path} failed: {_line(error)}") from error
    if not records and not named:
        raise UserError(f"{path} has no hook, such as longtake_compressors under @impl")
    _collect(registry(), module, str(path))


def import_file(path: Path) -> ModuleType:
    """Return the module of a Python file, run with its folder importable, as Python itself does.

    Raises:
        Exception: whatever the file raises.
    """
    full = path.absolute()
    name = f"_longtake_{hashlib.sha256(str(full).encode()).hexdigest()[:12]}_{full.stem}"
    spec = importlib.util.spec_from_file_location(name, full)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(full.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(full.parent))
    return module
