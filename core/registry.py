"""Discovery: built-in and third-party plugins through one door (design §3)."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from difflib import SequenceMatcher
from importlib.metadata import distributions
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
from attrs import define, field

from . import hooks
from .errors import UserError
from .hooks import GROUP, KINDS, Plugin
from .interfaces.spec import PluginSpec
from .values.grid import Geometry

# ⟦core/third_parties.py⟧ Where plugins of others are: installed distributions, and single Python files.


VARIABLE = "LONGTAKE_PLUGINS"


def third_parties() -> list[tuple[str, str]]:
    """Return distribution and module of every third party, by name; the first on the path counts.

    Python files that the variable names come last, under their own path.
    """
    wanted = os.environ.get(VARIABLE)
    given = None if wanted is None else [name.strip() for name in wanted.split(",")]
    files = [name for name in given or () if name.endswith(".py")]
    names = None if given is None else {_normal(name) for name in given if name}
    found: dict[str, list[tuple[str, str]]] = {}
    for dist in distributions():
        points = [p.value for p in dist.entry_points if p.group == GROUP]
        name = str(dist.metadata["Name"]) if points else ""
        if points and (names is None or _normal(name) in names):
            found.setdefault(_normal(name), [(name, value) for value in points])
    installed = [pair for _, pairs in sorted(found.items()) for pair in pairs]
    return installed + [(name, name) for name in files]


def imported(module: str) -> ModuleType:
    """Return a module by its dotted name, or by the path of its file where it ends in `.py`.

    Raises:
        Exception: whatever it raises.
    """
    if not module.endswith(".py"):
        return importlib.import_module(module)

    return import_file(Path(module))


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


_SHIPPED: list[str] = []
_NAMED = {"experiments": str, "weights": Path, "geometries": Geometry}  # name: such a value


def ship(*modules: str) -> None:
    """Name the hook modules of the package itself; the face calls this once."""
    _SHIPPED.extend(module for module in modules if module not in _SHIPPED)
    registry.cache_clear()


@define
class Registry:
    """All plugins that were found.

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
        found = self.plugins.get((kind, name))
        if found is None:
            known = [plugin.name for plugin in self.of(kind)]
            raise UserError(f"unknown {kind} {name!r}; known: {', '.join(nearest(name, known))}")
        return found

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
        """Import and give the class that a spec belongs to."""
        return self.find(spec).load()


def build(spec: PluginSpec, *args: Any) -> Any:
    """Return the plugin of a spec, built as `cls(spec, *args)` (backbones: `load_backbone`)."""
    return registry().load(spec)(spec, *args)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names, those most like `name` first."""
    return sorted(known, key=lambda k: -SequenceMatcher(None, name.lower(), k.lower()).ratio())


@functools.cache
def registry() -> Registry:
    """Return the registry, built at the first call: what ships, then third parties.

    `LONGTAKE_PLUGINS` (distribution names and Python files, separated by commas) names the only
    third parties to load; empty: none. One that fails is reported in `broken` and skipped.

    Raises:
        UserError: two plugins have one name; the message names both distributions.
    """
    found = Registry()
    for module in _SHIPPED:
        _collect(found, importlib.import_module(module), "longtake")
    for origin, module in third_parties():
        try:
            loaded = imported(module)
        except (Exception, SystemExit) as error:  # a stranger's import may raise anything
            found.broken.append(f"{origin}: {module} failed to import: {_line(error)}")
            continue
        _collect(found, loaded, origin)
    return found


def plug_in(path: Path) -> None:
    """Take the plugins of a Python file in, for as long as this process lives.

    `LONGTAKE_PLUGINS=path.py` does the same for every command.

    Raises:
        UserError: there is no such file, it fails, it has no hook, or a name is taken.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of plugins")
    try:
        module = imported(str(path))
        records, named = _offered(module)
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise UserError(f"{path} failed: {_line(error)}") from error
    if not records and not named:
        raise UserError(f"{path} has no hook, such as longtake_compressors under @impl")
    _collect(registry(), module, str(path))


def _line(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def _collect(found: Registry, module: Any, origin: str) -> None:
    try:
        records, named = _offered(module)
    except (Exception, SystemExit) as error:  # a stranger's hooks may raise anything
        if origin == "longtake":
            raise
        found.broken.append(f"{origin}: its hooks failed: {_line(error)}")
        return
    for record in records:
        _add(found, record, origin)
    for kind, name, value in named:
        _add_name(found, kind, name, value, origin)


def _offered(module: Any) -> tuple[list[Plugin], list[tuple[str, str, Any]]]:
    """Return the records and the named values of a module; a misspelt hook is an error."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hooks)
    manager.register(module)
    manager.check_pending()
    hook = functools.partial(getattr, manager.hook)
    records = [(k, record) for k in KINDS for ps in hook(f"{GROUP}_{k}s")() for record in ps]
    for kind, record in records:
        _held(record, Plugin, f"{GROUP}_{kind}s gives Plugin records")
    offers = [(kind, dict(offer)) for kind in _NAMED for offer in hook(f"{GROUP}_{kind}")()]
    named = [(kind, name, value) for kind, offer in offers for name, value in offer.items()]
    for kind, name, value in named:
        _held(name, str, f"{GROUP}_{kind} gives names")
        _held(value, _NAMED[kind], f"{GROUP}_{kind} gives a {_NAMED[kind].__name__} by name")
    return [record for _, record in records], named


def _held(value: Any, wanted: type[Any], promise: str) -> None:
    if not isinstance(value, wanted):
        raise TypeError(f"{promise}, not {value!r}")


def _add_name(found: Registry, kind: str, name: str, value: Any, origin: str) -> None:
    if (kind, name) in found.origins:
        raise UserError(
            f"two plugins name {kind} {name!r}: {found.origins[kind, name]} and {origin}; "
            "uninstall one, or leave it out with LONGTAKE_PLUGINS"
        )
    getattr(found, kind)[name] = value
    found.origins[kind, name] = origin


def _add(found: Registry, plugin: Plugin, origin: str) -> None:
    key = (plugin.kind, plugin.name)
    if key in found.plugins:
        raise UserError(
            f"two plugins name a {plugin.kind} {plugin.name!r}: {found.origins[key]} "
            f"({found.plugins[key].target}) and {origin} ({plugin.target}); "
            "uninstall one, or leave it out with LONGTAKE_PLUGINS"
        )
    found.plugins[key] = plugin
    found.origins[key] = origin


# ⟦core/edge/source.py⟧ Python files and modules that hold experiments.


def import_file(path: Path) -> ModuleType:
    """Return the module of a Python file, run with its folder importable, as Python itself does.

    Raises:
        Exception: whatever the file raises.
    """
    full = path.absolute()
    name = f"_longtake_{hashlib.sha256(str(full).encode()).hexdigest()[:12]}_{full.stem}"
    found = importlib.util.spec_from_file_location(name, full)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    sys.path.insert(0, str(full.parent))
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(full.parent))
    return module
