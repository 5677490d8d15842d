"""What can be wrong with a plugin's record, told without importing anything: one line each.

Listing plugins imports none of them, since most bring torch; so the target of a record is looked up
by its source text. What only an import can tell is told when the plugin is first used.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
from attrs import frozen

from .hooks import GROUP, KINDS, Plugin
from .interfaces.spec import PluginSpec


def record_fault(record: Any, kind: str) -> str:
    """Return what is wrong with a record that the hook of a kind returned; "": nothing."""
    hook = f"{GROUP}_{kind}s"
    if not isinstance(record, Plugin):
        return f"its hooks failed: TypeError: {hook} gives Plugin records, not {record!r}"
    if not (isinstance(record.name, str) and record.name):
        return f"{hook}: a record's name is a text, not {record.name!r}"
    if not isinstance(record.summary, str):
        return f"{kind} {record.name!r}: its summary is a text, not {record.summary!r}"
    name = f"{kind} {record.name!r}"
    spec = record.spec
    if not (isinstance(spec, type) and issubclass(spec, PluginSpec)):
        return f"{name}: its spec is a class on a base of core.interfaces.spec, not {spec!r}"
    if spec.kind not in KINDS:
        return f"{name}: its spec {spec.__qualname__} is of no kind; bases are such as MetricSpec"
    if spec.kind != kind:
        return (
            f"{name}: its spec {spec.__qualname__} is a {spec.kind}'s, so it belongs into "
            f"{GROUP}_{spec.kind}s, not {hook}"
        )
    if "__attrs_attrs__" not in vars(spec) or not attrs.has(spec):
        return f"{name}: its spec {spec.__qualname__} lacks @attrs.frozen(kw_only=True)"
    module, _, cls = record.target.partition(":") if isinstance(record.target, str) else ("",) * 3
    if not (module and cls):
        return f"{name}: its target is written package.module:Class, not {record.target!r}"
    return ""


def target_fault(target: str) -> str:
    """Return why the class of a target cannot be loaded, as far as source tells; "": it may be.

    Told are: no such module, a package that it imports and that is not installed, no such class,
    and methods left abstract.
    """
    name, _, cls = target.partition(":")
    if name in sys.modules:
        return _loaded_fault(sys.modules[name], cls)
    try:
        source = _Source.read(name)
        absent = "" if source is None else source.absent(set())
    except (OSError, SyntaxError, ValueError, ImportError) as error:
        return f"{target}: {name} cannot be read: {error}"
    if source is None:
        return f"{target}: there is no module {name}"
    if absent:
        return f"{target}: it needs {absent}, which is not installed"
    if not source.has(cls):
        return f"{target}: {name} has no {cls}"
    missing = source.abstract(cls)
    if missing:
        return f"{target}: the class is unfinished: it does not define {', '.join(missing)}"
    return ""


def _loaded_fault(module: ModuleType, cls: str) -> str:
    """Return what is wrong with the class of a target whose module is imported already."""
    value = getattr(module, cls, None)
    if value is None:
        return f"{module.__name__}:{cls}: {module.__name__} has no {cls}"
    fault = unfinished(value)
    return fault and f"{module.__name__}:{cls}: {fault}"


def unfinished(cls: Any) -> str:
    """Return which methods a class leaves abstract, in words; "": none."""
    if not inspect.isabstract(cls):
        return ""
    return (
        f"the class is unfinished: it does not define {', '.join(sorted(cls.__abstractmethods__))}"
    )


def _find(name: str) -> ModuleSpec | None:
    """Return where a module is, without importing its packages."""
    path: Sequence[str] | None = None
    spec = None
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        package = ".".join(parts[:end])
        loaded = sys.modules.get(package)
        spec = loaded.__spec__ if loaded and loaded.__spec__ else _search(package, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and end < len(parts):
            return None
    return spec


def _search(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    # as `importlib.util.find_spec`, which would import the package that a module is in
    found = (finder.find_spec(name, path, None) for finder in sys.meta_path)
    return next((spec for spec in found if spec is not None), None)


@frozen
class _Source:
    """The text of a module as a tree; `readable` is False where it is compiled."""

    name: str
    tree: ast.Module
    package: str
    readable: bool

    @classmethod
    def read(cls, name: str) -> _Source | None:
        """Return the source of a module; None where there is none of that name."""
        spec = _find(name)
        if spec is None:
            return None
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        readable = spec.origin is not None and spec.origin.endswith(".py")
        text = Path(str(spec.origin)).read_text(encoding="utf-8") if readable else ""
        return cls(name, ast.parse(text), package, readable)

    def imports(self) -> Iterator[tuple[str, str, str]]:
        """Yield module, name in it ("": the module itself) and name here of unguarded imports."""
        for node in self.tree.body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    here = alias.asname or alias.name.partition(".")[0]
                    yield alias.name, "", here
            elif isinstance(node, ast.ImportFrom):
                written = "." * node.level + (node.module or "")
                module = resolve_name(written, self.package) if node.level else written
                for alias in node.names:
                    yield module, alias.name, alias.asname or alias.name

    def absent(self, seen: set[str]) -> str:
        """Return the first module that cannot be found of those imported at once; "": none.

        Modules of the same package are looked through, too, but for those `seen`.
        """
        seen.add(self.name)
        for module, name, _ in self.imports():
            for each in (module, f"{module}.{name}"):
                if each in sys.modules or each in seen or each.partition(".")[0] != self.top:
                    continue
                source = _Source.read(each)
                absent = source.absent(seen) if source else ""
                if absent:
                    return absent
            if module not in sys.modules and _find(module) is None:
                return module
        return ""

    @property
    def top(self) -> str:
        """The package that all of a distribution's modules are in, or the module itself."""
        return self.name.partition(".")[0]

    def has(self, name: str) -> bool:
        """Return whether the module has a name, or may have: its text need not tell."""
        found = {here for _, _, here in self.imports()}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.alias):
                found.add(node.asname or node.name)
        return not self.readable or bool(found & {name, "*", "__getattr__"})

    def abstract(self, cls: str) -> list[str]:
        """Return the methods that a class leaves abstract; none where a base cannot be read."""
        try:
            wanted, defined = _methods(self, cls)
        except LookupError:
            return []
        return sorted(wanted - defined)


def _methods(source: _Source, cls: str) -> tuple[set[str], set[str]]:
    """Return the abstract and the other names of a class and its bases.

    Raises:
        LookupError: a base is not of this package or of longtake's, or is no plain name.
    """
    node = next(
        (x for x in source.tree.body if isinstance(x, ast.ClassDef) and x.name == cls), None
    )
    if node is None:
        for module, name, here in source.imports():
            if here == cls and name:
                return _methods(_own_source(module, source), name)
        raise LookupError(cls)
    wanted: set[str] = set()
    defined: set[str] = set()
    for member in node.body:
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = {ast.unparse(mark).rpartition(".")[2] for mark in member.decorator_list}
            (wanted if "abstractmethod" in marks else defined).add(member.name)
        elif isinstance(member, ast.Assign):
            defined |= {t.id for t in member.targets if isinstance(t, ast.Name)}
        elif isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
            defined.add(member.target.id)
    for base in node.bases:
        text = ast.unparse(base).partition("[")[0]
        if text in ("ABC", "abc.ABC", "Generic", "nn.Module", "torch.nn.Module", "object"):
            continue
        more = _methods(source, text)
        wanted, defined = wanted | more[0], defined | more[1]
    return wanted, defined


def _own_source(module: str, source: _Source) -> _Source:
    own = module.partition(".")[0] in ("longtake", source.top)
    found = _Source.read(module) if own else None
    if found is None:
        raise LookupError(module)
    return found
