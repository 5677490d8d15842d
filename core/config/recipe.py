"""Recipes: what an experiment takes from its backbone, and how it is put on another one.

The class of a backbone's spec has a `recipe` (`core.interfaces.spec.BackboneSpec`): plain values by
key. A field of the experiment follows the key that is its path (`train.rate`), a field of a plugin
the key that its `doc(..., recipe=...)` names. Putting an experiment on another backbone is a
three-way merge: a field that the old recipe explains, or that nobody set (it is the default of its
class), takes the new recipe's value; all others stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import attrs
from attrs import Attribute, frozen

from ..errors import UserError
from ..experiment import Experiment, Target, as_tuples, evolved
from ..interfaces.spec import BackboneSpec, PluginSpec, RetrieverSpec
from ..registry import registry
from ..values.grid import Rate
from .convert import candidates, hints
from .faults import SpecError, join, message, unknown_field

B = TypeVar("B", bound=BackboneSpec)
Path = tuple[str | int, ...]
Recipe = Mapping[str, Any]
Find = Callable[[str], type[PluginSpec]]

# Fields that make sense together only: all of them follow, or none.
GROUPS = (("train.optimizer", "train.rate", "train.warmup", "train.decay", "train.betas"),)
RETRIEVERS = "retrievers"
TARGETS = "measure.targets"


@frozen(kw_only=True)
class Leaf:
    """A field of a spec that holds no other spec.

    Attributes:
        path: from the experiment to it: names of fields, and places in lists.
        key: of the recipe's value that it follows; empty: none.
        value: what it holds.
        default: of its class; `attrs.NOTHING` where it has none.
    """

    path: Path
    key: str
    value: Any
    default: Any

    @property
    def text(self) -> str:
        """The path as `--set` reads it."""
        return path_text(self.path)


@frozen(kw_only=True)
class Swap:
    """What became of an experiment that was put on another backbone.

    Attributes:
        backbone: the new one, by its plugin's name.
        recipe: whether it brings one; else what depends on a backbone is the default of its field.
        follow: path, old and new value of every field that took the new recipe's.
        kept: path, value and the recipe's value of every field that the experiment holds itself.
        dropped: path and value of what was set on the old backbone, which the new one has not got.
    """

    backbone: str
    recipe: bool
    follow: tuple[tuple[str, Any, Any], ...]
    kept: tuple[tuple[str, Any, Any], ...]
    dropped: tuple[tuple[str, Any], ...]

    @property
    def line(self) -> str:
        """What it came to, in one line."""
        parts = [f"{_count(len(self.follow))} its recipe"]
        if not self.recipe:
            parts = [f"it brings no recipe; {len(self.follow)} values changed, to defaults"]
        if self.kept:
            count = len(self.kept)
            words = ("value", "stays") if count == 1 else ("values", "stay")
            parts.append(f"{count} {words[0]} that the experiment sets itself {words[1]}")
        if self.dropped:
            names = ", ".join(f"{path} {value}" for path, value in self.dropped)
            parts.append(f"no longer set: {names}")
        return f"backbone {self.backbone}: {'; '.join(parts)}"


def _count(number: int) -> str:
    return "1 value follows" if number == 1 else f"{number} values follow"


def path_text(path: Path) -> str:
    """Return a path as messages and `--set` write it, such as `compressors[0].rate`."""
    text = ""
    for part in path:
        text = join(text, part)
    return text


def leaves(spec: Any, at: Path = ()) -> Iterator[Leaf]:
    """Yield every leaf of a spec, or of a tuple of specs, that stands at the path `at`."""
    if isinstance(spec, tuple):
        for index, member in enumerate(spec):
            if _is_spec(member):
                yield from leaves(member, (*at, index))
    elif _is_spec(spec):
        for attribute in attrs.fields(type(spec)):
            yield from _leaves_of(spec, attribute, (*at, attribute.name))


def _leaves_of(spec: Any, attribute: Attribute[Any], path: Path) -> Iterator[Leaf]:
    value = getattr(spec, attribute.name)
    members = value if isinstance(value, tuple) else (value,)
    if any(_is_spec(member) for member in members):
        yield from leaves(value, path)
        return
    own = isinstance(spec, BackboneSpec) or not isinstance(spec, PluginSpec)
    key = path_text(path) if own else attribute.metadata.get("recipe", "")
    yield Leaf(path=path, key=key, value=value, default=_default(attribute))


def _is_spec(value: Any) -> bool:
    return attrs.has(type(value)) and not isinstance(value, Rate)


def _default(attribute: Attribute[Any]) -> Any:
    default: Any = attribute.default
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return attrs.NOTHING if default.takes_self else default.factory()
    return default


def recipe_of(backbone: BackboneSpec | type[BackboneSpec]) -> dict[str, Any]:
    """Return the recipe of a backbone's class, lists as tuples.

    Raises:
        UserError: a key of it is the path of no field of an experiment, or of the backbone.
    """
    cls = backbone if isinstance(backbone, type) else type(backbone)
    roots = hints(Experiment) | {"backbone": cls}
    for key in cls.recipe:
        first, _, rest = key.partition(".")
        if first in ("backbone", "cache", "train", "measure", "generate"):
            _check_path(f"the recipe of {cls.__name__}: {key}", roots[first], rest)
    return {key: as_tuples(value) for key, value in cls.recipe.items()}


def _check_path(where: str, owner: Any, rest: str) -> None:
    """Raise UserError where `rest` is no path of fields below an attrs class."""
    name, _, below = rest.partition(".")
    known = hints(owner) if attrs.has(owner) else {}
    if name not in known:
        raise UserError(f"{where}: {unknown_field(name, known)}")
    if below:
        _check_path(where, known[name], below)


def changes(experiment: Experiment, old: Recipe, new: Recipe) -> dict[Path, Any]:
    """Return the new value of every leaf that follows the recipe, by path; no lists, no name."""
    found = [leaf for leaf in leaves(experiment) if _follows(leaf)]
    groups = [[leaf for leaf in found if leaf.key in group] for group in GROUPS]
    alone = [[leaf] for leaf in found if not any(leaf.key in group for group in GROUPS)]
    result: dict[Path, Any] = {}
    for group in [*groups, *alone]:
        if all(old.get(x.key, x.default) == new.get(x.key, x.default) for x in group):
            continue
        explained = all(leaf.value == old.get(leaf.key, leaf.default) for leaf in group)
        if explained or all(leaf.value == leaf.default for leaf in group):
            wanted = {leaf.path: new.get(leaf.key, leaf.default) for leaf in group}
            result |= {p: v for p, v in wanted.items() if v is not attrs.NOTHING}
    return {leaf.path: result[leaf.path] for leaf in found if _differs(leaf, result)}


def _differs(leaf: Leaf, wanted: Mapping[Path, Any]) -> bool:
    return leaf.path in wanted and bool(wanted[leaf.path] != leaf.value)


def _follows(leaf: Leaf) -> bool:
    backbone = leaf.path[0] == "backbone"
    return not backbone and leaf.key not in ("", "name", TARGETS)


def moved(experiment: Experiment, backbone: type[BackboneSpec]) -> dict[Path, Any]:
    """Return what changes, besides the backbone, where an experiment is put on another one.

    Args:
        experiment: as it is.
        backbone: the class of the other one's spec.
    """
    old, new = recipe_of(experiment.backbone), recipe_of(backbone)
    result = {("name",): _renamed(experiment, backbone), **changes(experiment, old, new)}
    if experiment.remembers:
        rate = rate_of(experiment)
        lists = [retrievers_of(recipe, rate) for recipe in (old, new)]
        result[(RETRIEVERS,)] = _merged(experiment.retrievers, *lists)
        targets = experiment.measure.targets
        result["measure", "targets"] = _merged(targets, targets_of(old), targets_of(new))
    return {path: value for path, value in result.items() if value != _at(experiment, path)}


def _merged(now: tuple[Any, ...], old: tuple[Any, ...], new: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a list as the new recipe has it, with the members that are the experiment's own."""
    if old == new:
        return now
    extra = tuple(member for member in now if member not in old)
    if old and all(member in now for member in old):
        return (*new, *(member for member in extra if member not in new)) or now
    kept = tuple(member for member in now if member in new or member not in old)
    added = tuple(member for member in new if member not in old and member not in kept)
    return (*kept, *added) or now


def retrievers_of(
    recipe: Recipe, rate: Rate | None, find: Find | None = None
) -> tuple[RetrieverSpec, ...]:
    """Return the retrievers that a recipe lists, for a memory of a rate.

    Args:
        recipe: of a backbone.
        rate: that of members which have a rate and name none; None: the default of their class.
        find: the spec class of a retriever by its plugin's name; None: the registry knows.
    """
    find = find or (lambda name: registry().get("retriever", name).spec)
    members: list[Any] = []
    for entry in recipe.get(RETRIEVERS, ()):
        cls = find(entry["type"])
        values = {name: value for name, value in entry.items() if name != "type"}
        if rate is not None and "rate" in {a.name for a in attrs.fields(cls)}:
            values.setdefault("rate", rate)
        members.append(cls(**values))
    return tuple(members)


def targets_of(recipe: Recipe) -> tuple[Target, ...]:
    """Return the targets that a recipe adds to those of an experiment."""
    return tuple(Target(**entry) for entry in recipe.get(TARGETS, ()))


def rate_of(experiment: Experiment) -> Rate | None:
    """Return the rate of the first compressor that has one, or None."""
    rates = (getattr(spec, "rate", None) for spec in experiment.compressors)
    return next((rate for rate in rates if isinstance(rate, Rate)), None)


def _renamed(experiment: Experiment, backbone: type[BackboneSpec]) -> str:
    """Return the experiment's name on another backbone: its own, or the backbone's at its rate."""
    old, new = (registry().find(spec).name for spec in (experiment.backbone, backbone))
    rate, name = rate_of(experiment), experiment.name
    follows = rate is not None and f"{name}-".startswith(f"{old}-{rate}-")
    return new + name.removeprefix(old) if follows else name


def from_recipe(experiment: Experiment, data: Any = None) -> Experiment:
    """Return the experiment with the recipe of its backbone in every field that nobody set.

    Args:
        experiment: as it is. Its lists stay.
        data: the JSON that it was read from: what that leaves out was not set. None: a field that
            holds the default of its class counts as not set.
    """
    found = changes(experiment, {}, recipe_of(experiment.backbone))
    if data is not None:
        named = {leaf.path for leaf in leaves(experiment) if in_data(data, leaf.path)}
        together = {leaf.key for leaf in leaves(experiment) if leaf.path in named}
        groups = [group for group in GROUPS if set(group) & together]
        kept = {leaf.path for leaf in leaves(experiment) if any(leaf.key in g for g in groups)}
        found = {path: value for path, value in found.items() if path not in named | kept}
    made: Experiment = evolved(experiment, found)
    return made


def in_data(data: Any, path: Path) -> bool:
    """Return whether JSON as a user wrote it has something at a path."""
    for part in path:
        if isinstance(part, str) and not (isinstance(data, dict) and part in data):
            return False
        data = data[part]
    return True


def on_backbone(experiment: Experiment, backbone: BackboneSpec | str) -> Experiment:
    """Return the experiment on another backbone, as `--set backbone=...` puts it there.

    Args:
        experiment: as it is.
        backbone: the other one's spec, or its plugin's name: then as its recipe has it.

    Raises:
        UserError: there is no such backbone.
        SpecError: what would come out is refused.
    """
    spec = backbone
    if isinstance(spec, str):
        spec = recommended(candidates(BackboneSpec)[registry().get("backbone", spec).name])
    changed: dict[Path, Any] = {("backbone",): spec}
    if type(spec) is not type(experiment.backbone):
        changed |= moved(experiment, type(spec))
    try:
        made: Experiment = evolved(experiment, changed)
    except (TypeError, ValueError) as error:
        raise SpecError([f"experiment: {message(error)}"]) from error
    return made


def recommended(backbone: type[B]) -> B:
    """Return the spec of a backbone as its recipe has it."""
    return backbone(**backbone_fields(backbone))


def backbone_fields(backbone: type[BackboneSpec]) -> dict[str, Any]:
    """Return the fields of the backbone itself that its recipe sets."""
    recipe = recipe_of(backbone)
    start = "backbone."
    return {key.removeprefix(start): v for key, v in recipe.items() if key.startswith(start)}


def swap_of(
    experiment: Experiment, backbone: type[BackboneSpec], changed: Mapping[Path, Any]
) -> Swap:
    """Return what to say of an experiment that is put on another backbone.

    Args:
        experiment: before.
        backbone: the class of the other one's spec.
        changed: what `moved` returned.
    """
    old, new = recipe_of(experiment.backbone), recipe_of(backbone)
    follow = [(path_text(p), _at(experiment, p), value) for p, value in changed.items()]
    kept = []
    for leaf in leaves(experiment):
        wanted = new.get(leaf.key, leaf.default)
        depends = _follows(leaf) and (leaf.key in new or leaf.key in old)
        if depends and leaf.value != wanted and not _within(leaf.path, changed):
            kept.append((leaf.text, leaf.value, wanted))
    dropped = tuple(_own(experiment.backbone))
    name = registry().find(backbone).name
    return Swap(
        backbone=name,
        recipe=bool(new),
        follow=tuple(follow),
        kept=tuple(kept),
        dropped=dropped,
    )


def _own(backbone: BackboneSpec) -> Iterator[tuple[str, Any]]:
    """Yield path and value of what is neither a backbone's default nor its recipe's."""
    usual = backbone_fields(type(backbone))
    for attribute in attrs.fields(type(backbone)):
        value, default = getattr(backbone, attribute.name), _default(attribute)
        if value not in (default, usual.get(attribute.name, default)):
            named = registry().find(value).name if isinstance(value, PluginSpec) else value
            yield f"backbone.{attribute.name}", named


def _within(path: Path, changed: Iterable[Path]) -> bool:
    return any(path[: len(other)] == other for other in changed)


def origins(experiment: Experiment, sets: Sequence[str] = ()) -> dict[str, str]:
    """Return where the value of every leaf comes from, by its path.

    Args:
        experiment: as it is.
        sets: the paths that were set, such as `compressors[0].rate`.

    Returns:
        `--set`; `recipe`, of the backbone; `default`, of the field; or `experiment`.
    """
    recipe = recipe_of(experiment.backbone)
    known: dict[Path, Sequence[Any]] = {
        ("retrievers",): retrievers_of(recipe, rate_of(experiment)),
        ("measure", "targets"): targets_of(recipe),
    }
    own = f"{registry().find(experiment.backbone).name}-{rate_of(experiment)}"
    members = {
        (*at, index)
        for at, of in known.items()
        for index, member in enumerate(_at(experiment, at))
        if member in of
    }

    def origin(leaf: Leaf) -> str:
        if leaf.text in sets:
            return "--set"
        follows = leaf.key in recipe and leaf.key != TARGETS and recipe[leaf.key] == leaf.value
        named = leaf.path == ("name",) and leaf.value == own
        if follows or named or _within(leaf.path, members):
            return "recipe"
        if leaf.value == leaf.default:
            return "default"
        above = any(leaf.text.startswith((f"{path}.", f"{path}[")) for path in sets)
        return "--set" if above else "experiment"

    return {leaf.text: origin(leaf) for leaf in leaves(experiment)}


def _at(spec: Any, path: Path) -> Any:
    for part in path:
        spec = spec[part] if isinstance(part, int) else getattr(spec, part)
    return spec
