"""The registry of plugins: what ships, installed distributions, single Python files (design §3)."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
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
from .records import record_fault, target_fault, unfinished
from .tools.words import names_like
from .values.grid import Geometry

VARIABLE = "LONGTAKE_PLUGINS"
LIST = "longtake list"  # lists all that there is by name
_SHIPPED: list[str] = []
_FILES: dict[Path, tuple[str, ModuleType]] = {}  # that were imported: hash of their text, module
_NAMED = {"experiments": str, "weights": Path, "geometries": Geometry}  # name: such a value
_SINGULAR = {"experiments": "experiment", "geometries": "geometry"}


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
        broken: one line for each thing that did not load, such as a record, and why.
        refused: why a name did not load, by kind and name; using the name says so.
        unloaded: why no plugin has a spec class that a record names.
    """

    plugins: dict[tuple[str, str], Plugin] = field(factory=dict)
    origins: dict[tuple[str, str], str] = field(factory=dict)
    experiments: dict[str, str] = field(factory=dict)
    weights: dict[str, Path] = field(factory=dict)
    geometries: dict[str, Geometry] = field(factory=dict)
    broken: list[str] = field(factory=list)
    refused: dict[tuple[str, str], str] = field(factory=dict)
    unloaded: dict[type[PluginSpec], str] = field(factory=dict)

    def of(self, kind: str) -> list[Plugin]:
        """Return the plugins of a kind by name."""
        return [p for (k, _), p in sorted(self.plugins.items()) if k == kind]

    def get(self, kind: str, name: str) -> Plugin:
        """Return the plugin of that name.

        Raises:
            UserError: there is none; the message names known ones, nearest first, or says why it
                did not load.
        """
        plugin = self.plugins.get((kind, name))
        if plugin is None:
            self.check_loaded(kind, name)
            known = [each.name for each in self.of(kind)]
            raise UserError(f"unknown {kind} {name!r}; known: {names_like(name, known, LIST)}")
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
        if cls in self.unloaded:
            raise UserError(
                f"the {cls.kind} of {cls.__qualname__} is not loaded: {self.unloaded[cls]}"
            )
        file = getattr(sys.modules.get(cls.__module__), "__file__", None)
        advice = f"; if {file} registers it, name that file in {VARIABLE}" if file else ""
        raise UserError(f"no {cls.kind} plugin has the spec class {cls.__qualname__}{advice}")

    def why_not_loaded(self, kind: str, name: str) -> str:
        """Return why a name that is there did not load, in one line; "" where it is not there."""
        reason = self.refused.get((kind, name), "")
        return reason and f"{_SINGULAR.get(kind, kind)} {name!r} is not loaded: {reason}"

    def check_loaded(self, kind: str, name: str) -> None:
        """Raise UserError if a plugin (experiment, ...) of that name is there but did not load."""
        reason = self.why_not_loaded(kind, name)
        if reason:
            raise UserError(reason)

    def load(self, spec: PluginSpec) -> Any:
        """Import and return the class that a spec belongs to.

        Raises:
            UserError: its module cannot be imported, has no such class, or the class is unfinished.
        """
        plugin = self.find(spec)
        try:
            cls = plugin.load()
            fault = _class_fault(cls)
        except (Exception, SystemExit) as error:  # a stranger's import may raise anything
            fault = _line(error)
        if not fault:
            return cls
        origin = self.origins[plugin.kind, plugin.name]
        raise UserError(
            f"{plugin.kind} {plugin.name!r} of {origin} cannot be used: {plugin.target}: {fault}"
        )


def build(spec: PluginSpec, *args: Any) -> Any:
    """Return the plugin of a spec, built as `cls(spec, *args)`."""
    return registry().load(spec)(spec, *args)


def shipped_weights(name: str, part: str) -> str:
    """Return the names of weights that ship for a message, those most like an unknown one first.

    Args:
        name: that is none of them.
        part: the file or folder in them that is asked for, such as `backbone`.
    """
    known = [key for key, folder in registry().weights.items() if (folder / part).exists()]
    return names_like(name, known, LIST)


def origins(spec: Any) -> dict[str, str]:
    """Return where the third parties' plugins of a spec come from: distribution and version.

    A Python file stands by its path, with the hash of its text instead of a version.

    Args:
        spec: any attrs value, such as an experiment.
    """
    return {name: _version_of(name) for name in sorted(_third_parties_of(spec))}


def source_digest(spec: Any) -> str:
    """Return a hash of the Python files of the third parties' plugins of a spec; "" of none.

    It tells an editable install before an edit from the one behind it: `origins` has one version
    for both. Files are those that are imported of the packages that the plugins are in.

    Args:
        spec: any attrs value, such as an experiment.
    """
    plugins = [plugin for several in _third_parties_of(spec).values() for plugin in several]
    packages = {plugin.target.partition(":")[0].partition(".")[0] for plugin in plugins}
    loaded = {
        name: getattr(module, "__file__", None)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages
    }
    files = {name: Path(file) for name, file in loaded.items() if file and file.endswith(".py")}
    texts = [(name, path.read_bytes()) for name, path in sorted(files.items()) if path.is_file()]
    return hashlib.sha256(repr(texts).encode()).hexdigest()[:16] if texts else ""


def _third_parties_of(spec: Any) -> dict[str, list[Plugin]]:
    """Return the plugins of a spec that do not ship, by where they come from."""
    found: dict[str, list[Plugin]] = {}
    for plugin in map(registry().find, _plugin_specs(spec)):
        origin = registry().origins[plugin.kind, plugin.name]
        if origin != "longtake":
            found.setdefault(origin, []).append(plugin)
    return found


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
    third parties to load; empty: none. Nothing of theirs ends a command: what does not load, be it
    a distribution, a hook or a single record, is one line in `broken`. Of two plugins with one
    name the built-in one counts; of two strangers' neither does.
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
    result.broken.extend(_unknown_names())
    return result


def third_parties() -> list[tuple[str, str]]:
    """Return distribution and module of every third party, by name; the first on the path counts.

    Python files that LONGTAKE_PLUGINS names come last, under their own path.
    """
    listed = _listed()
    files = [name for name in listed or () if name.endswith(".py")]
    names = None if listed is None else {_normalized(name) for name in listed}
    modules = {key: pairs for key, pairs in _installed().items() if names is None or key in names}
    installed = [pair for _, pairs in sorted(modules.items()) for pair in pairs]
    return installed + [(name, name) for name in files]


def _listed() -> list[str] | None:
    """Return the names in LONGTAKE_PLUGINS, each once; None where it is not set."""
    variable = os.environ.get(VARIABLE)
    if variable is None:
        return None
    return list(dict.fromkeys(name.strip() for name in variable.split(",") if name.strip()))


def _installed() -> dict[str, list[tuple[str, str]]]:
    """Return name and hook modules of each distribution that has some, by its normalized name."""
    modules: dict[str, list[tuple[str, str]]] = {}
    for dist in distributions():
        points = [p.value for p in dist.entry_points if p.group == GROUP]
        name = str(dist.metadata["Name"]) if points else ""
        if points:
            modules.setdefault(_normalized(name), [(name, value) for value in points])
    return modules


def _unknown_names() -> list[str]:
    """Return a line for each name in LONGTAKE_PLUGINS that no installed distribution has."""
    names = [name for name in _listed() or () if not name.endswith(".py")]
    known = _installed() if names else {}
    there = [pairs[0][0] for pairs in known.values() if pairs]
    return [
        f"{name}: {VARIABLE} names it, but no installed distribution of that name has plugins; "
        f"known: {names_like(name, there)}; a file of plugins ends in .py"
        for name in names
        if _normalized(name) not in known
    ]


def _normalized(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def _import(module: str) -> ModuleType:
    """Return a module by its dotted name, or by the path of its file where it ends in `.py`."""
    if module.endswith(".py"):
        return import_file(Path(module), keep=True)
    return importlib.import_module(module)


def _collect(to: Registry, module: Any, origin: str) -> None:
    """Add what a module offers to a registry, and a line for all that it cannot take of it."""
    offers = _offers(module)
    if offers.faults and origin == "longtake":
        raise RuntimeError(f"{module.__name__}: {'; '.join(offers.faults)}")
    to.broken.extend(f"{origin}: {fault}" for fault in offers.faults)
    for record in offers.records:
        _add(to, record, origin)
    for kind, name, value in offers.named:
        _add_name(to, kind, name, value, origin)


@define
class _Offers:
    """What a module of hooks returns: records, named values by kind and name, and its faults."""

    records: list[Plugin] = field(factory=list)
    named: list[tuple[str, str, Any]] = field(factory=list)
    faults: list[str] = field(factory=list)


def _offers(module: Any) -> _Offers:
    """Return all that the hooks of a module return; what cannot be used is in `faults`."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hooks)
    offers = _Offers()
    try:
        manager.register(module)
        manager.check_pending()
    except Exception as error:  # a misspelt hook, or one with arguments: the others may be right
        offers.faults.append(f"its hooks failed: {_line(error)}")
    if not manager.get_hookcallers(module):
        offers.faults.append(
            "it has no hook, such as longtake_compressors under @longtake.core.hooks.impl"
        )
    for kind in KINDS:
        for record in _called(manager, f"{GROUP}_{kind}s", offers):
            fault = record_fault(record, kind)
            offers.faults.append(fault) if fault else offers.records.append(record)
    for kind in _NAMED:
        for name, value in _called(manager, f"{GROUP}_{kind}", offers, mapping=True):
            fault = _named_fault(kind, name, value)
            offers.faults.append(fault) if fault else offers.named.append((kind, name, value))
    return offers


def _called(
    manager: pluggy.PluginManager, hook: str, offers: _Offers, *, mapping: bool = False
) -> list[Any]:
    """Return what the implementations of a hook return, all in one list; pairs of a mapping."""
    try:
        returned = getattr(manager.hook, hook)()
        return [x for many in returned for x in (dict(many).items() if mapping else list(many))]
    except (Exception, SystemExit) as error:  # a stranger's hooks may raise anything
        offers.faults.append(f"its hooks failed: {_line(error)} ({hook})")
        return []


def _named_fault(kind: str, name: Any, value: Any) -> str:
    if not isinstance(name, str):
        return f"its hooks failed: TypeError: {GROUP}_{kind} gives names, not {name!r}"
    if not isinstance(value, _NAMED[kind]):
        expected = _NAMED[kind].__name__
        return (
            f"its hooks failed: TypeError: {GROUP}_{kind} gives a {expected} by name, not {value!r}"
        )
    return ""


def _add(to: Registry, plugin: Plugin, origin: str) -> None:
    """Add a record, or say why not; what ships is not looked at here, tests load all of it."""
    key = (plugin.kind, plugin.name)
    other = to.plugins.get(key)
    if _taken(to, key, origin, plugin.target):
        for each in (plugin, *([other] if other and key not in to.plugins else [])):
            to.unloaded[each.spec] = to.refused.get(key, to.broken[-1])
        return
    if origin != "longtake":
        same = next((p for p in to.of(plugin.kind) if p.spec is plugin.spec), None)
        fault = (
            f"its spec {plugin.spec.__qualname__} is that of {same.name!r}: each plugin has its own"
            if same
            else target_fault(plugin.target)
        )
        if fault:
            to.refused[key] = f"{origin}: {fault}"
            to.unloaded.setdefault(plugin.spec, to.refused[key])
            to.broken.append(f"{origin}: {plugin.kind} {plugin.name!r}: {fault}")
            return
    to.plugins[key] = plugin
    to.origins[key] = origin


def _add_name(to: Registry, kind: str, name: str, value: Any, origin: str) -> None:
    if not _taken(to, (kind, name), origin, str(value)):
        getattr(to, kind)[name] = value
        to.origins[kind, name] = origin


def _taken(to: Registry, key: tuple[str, str], origin: str, where: str) -> bool:
    """Return whether a name is not free: of two strangers' neither loads, and the lines say so."""
    kind, name = _SINGULAR.get(key[0], key[0]), key[1]
    here = f"{origin} ({where})"
    if to.origins.get(key) == "longtake":
        to.broken.append(
            f"{here}: {kind} {name!r} is the name of one that longtake ships: give it another name"
        )
        return True
    advice = "uninstall one, or leave it out with LONGTAKE_PLUGINS"
    if key in to.origins:
        other = to.plugins.pop(key, None)
        if other is None:
            there = f"{to.origins[key]} ({getattr(to, key[0]).pop(name)})"
        else:
            there = f"{to.origins[key]} ({other.target})"
        del to.origins[key]
        to.refused[key] = f"{there} and {here} both name it; {advice}"
        to.broken.append(
            f"{there} and {here}: both name a {kind} {name!r}, neither loads; {advice}"
        )
        return True
    if key in to.refused:
        to.refused[key] = f"{here} and {to.refused[key]}"
        to.broken.append(f"{here}: {kind} {name!r} is named by others, too; {advice}")
        return True
    return False


def _class_fault(cls: Any) -> str:
    """Return why a plugin's class cannot be built, "" where it can."""
    if not isinstance(cls, type):
        return f"it is no class but {cls!r}"
    return unfinished(cls)


def _line(error: BaseException) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def plug_in(path: Path) -> None:
    """Add the plugins of a Python file to the registry, for as long as this process lives.

    `LONGTAKE_PLUGINS=path.py` does the same for every command.

    Raises:
        UserError: there is no such file, it fails, it has no hook, a name is taken, or a record of
            it cannot be used.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of plugins")
    try:
        module = _import(str(path))
    except (Exception, SystemExit) as error:  # a user's code may raise anything
        raise UserError(f"{path} failed: {_line(error)}") from error
    known = registry()
    trial = Registry(
        plugins=dict(known.plugins),
        origins=dict(known.origins),
        experiments=dict(known.experiments),
        weights=dict(known.weights),
        geometries=dict(known.geometries),
        refused=dict(known.refused),
    )
    _collect(trial, module, str(path))
    if trial.broken:
        raise UserError("; ".join(trial.broken))
    for name in ("plugins", "origins", "experiments", "weights", "geometries"):
        getattr(known, name).update(getattr(trial, name))


def import_file(path: Path, *, keep: bool = False) -> ModuleType:
    """Return the module of a Python file, run once for one text, with its folder importable.

    It has the name by which other files import it (`package.module` where its folder is a package,
    else that of the file), so that they see the same classes; where that name is another module's,
    it has one of its own.

    Args:
        path: of the file.
        keep: whether what lies beside it stays importable, as plugins that load later need it.

    Raises:
        Exception: whatever the file raises.
    """
    full = path.absolute()
    digest = hashlib.sha256(str(full).encode() + full.read_bytes()).hexdigest()[:12]
    name, root = _name_in_package(full)
    added = str(root) not in sys.path
    if added:
        sys.path.append(str(root))  # at the end, where it hides nothing
    try:
        known = _FILES.get(full)
        if known and known[0] == digest:
            return known[1]
        whole = known is None and _is_found(name, full)
        module = importlib.import_module(name) if whole else _run_file(full, digest)
    finally:
        if added and not keep:
            sys.path.remove(str(root))
    _FILES[full] = (digest, module)
    return module


def _name_in_package(file: Path) -> tuple[str, Path]:
    """Return the dotted name of a file in the package that it is part of, and the folder of that.

    A file that is part of none has its own name alone.
    """
    names, folder = [file.stem], file.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    if file.stem == "__init__" and len(names) > 1:
        names.pop()
    return ".".join(names), folder


def _is_found(name: str, file: Path) -> bool:
    """Return whether importing a name would run a file, or has run it."""
    if Path(__file__).resolve().parents[1] in file.resolve().parents:
        return False  # longtake would run twice, under another name
    importlib.invalidate_caches()
    try:
        loaded = sys.modules.get(name)
        spec = loaded.__spec__ if loaded else importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a package of another name, or no name of a module
        return False
    origin = spec.origin if spec else None
    return origin is not None and Path(origin).absolute() == file


def _run_file(file: Path, digest: str) -> ModuleType:
    """Return the module of a file under a name of its own."""
    name = f"_longtake_{digest}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return module
