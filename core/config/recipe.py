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
from ..experiment import (
    Experiment,
    FinetuneSpec,
    Target,
    as_tuples,
    evolved,
    second_stage_key,
    stage_recipe,
)
from ..interfaces.spec import BackboneSpec, PluginSpec, RetrieverSpec
from ..registry import LIST, registry
from ..tools.words import names_like
from ..values.grid import Rate
from .convert import candidates, from_json, hints, to_json
from .faults import SpecError, in_json, join, message, unknown_field

B = TypeVar("B", bound=BackboneSpec)
Path = tuple[str | int, ...]
Recipe = Mapping[str, Any]
Find = Callable[[str], type[PluginSpec]]

# Fields that make sense together only: all of them follow, or none.
GROUPS = (("train.optimizer", "train.rate", "train.warmup", "train.decay", "train.betas"),)
RETRIEVERS = "retrievers"
TARGETS = "measure.targets"
ROOTS = ("backbone", "cache", "train", "measure", "finetune", "generate")  # of keys that are paths
# Fields that nothing reads in an experiment without a memory: there they stay as they are.
OF_MEMORY = (
    "cache.pixels",
    "masker.clean",
    "train.adapter.rank",
    "train.adapter.alpha",
    "train.memory_dropout",
)


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


def recipe_of(
    backbone: BackboneSpec | type[BackboneSpec],
    *,
    finetunes: bool = False,
    rate: Rate | None = None,
) -> dict[str, Any]:
    """Return the recipe of a backbone's class, lists as tuples.

    Args:
        backbone: its spec, or the class of that.
        finetunes: as experiments of Stage II read it; else as those of Stage 0 and I do.
        rate: of the memory, which may have weights of its own (`BackboneSpec.rate_weights`).

    Raises:
        UserError: a key of it is the path of no field of an experiment, or of the backbone, or
            goes into a field of the backbone, which a recipe sets whole; or a key of
            `rate_weights` is no rate, or the backbone has no field `weights`.
    """
    cls = backbone if isinstance(backbone, type) else type(backbone)
    roots = hints(Experiment) | {"backbone": cls, "finetune": FinetuneSpec}
    for key in cls.recipe:
        first, _, rest = second_stage_key(key).partition(".")
        if first in ROOTS:
            _check_path(f"the recipe of {cls.__name__}: {key}", roots[first], rest)
        if first == "backbone" and "." in rest:
            whole = f"backbone.{rest.partition('.')[0]}"
            raise UserError(f"the recipe of {cls.__name__}: {key}: set {whole} whole")
    recipe = stage_recipe(cls.recipe, finetunes=finetunes)
    by_rate = _weights_by_rate(cls)
    if rate in by_rate:
        recipe["backbone.weights"] = by_rate[rate]
    return {key: as_tuples(value) for key, value in recipe.items()}


def _weights_by_rate(backbone: type[BackboneSpec]) -> dict[Rate | None, str]:
    """Return the `rate_weights` of a backbone's class by the rates that they are of.

    Raises:
        UserError: a key is no rate, a value no text, or the backbone has no field `weights`.
    """
    found: dict[Rate | None, str] = {}
    recipe, own = (
        next(place for place, cls in enumerate(backbone.__mro__) if name in vars(cls))
        for name in ("recipe", "rate_weights")
    )
    if recipe < own:  # a subclass with another recipe: they are not of its weights
        return found
    for key, weights in backbone.rate_weights.items():
        where = f"the rate_weights of {backbone.__name__}: {in_json(key)}"
        _check_path(where, backbone, "weights")
        if not isinstance(weights, str) or not weights:
            raise UserError(f"{where}: must name weights, not {in_json(weights)}")
        try:
            found[Rate.parse(str(key))] = weights
        except ValueError as error:
            raise UserError(f"{where}: {error}") from error
    return found


def check_weights(backbone: type[BackboneSpec]) -> None:
    """Check that weights which a backbone's class names are somewhere.

    Those of its recipe and of its `rate_weights`: shipped ones, a folder or file, or a name that
    the hub could have, which is not asked.

    Raises:
        UserError: there are none of a name, or a key of `rate_weights` is no rate; with the key.
    """
    own = backbone.recipe.get("backbone.weights")
    named = {f"the rate_weights of {backbone.__name__}: {in_json(str(rate))}": weights
             for rate, weights in _weights_by_rate(backbone).items()}  # fmt: skip
    if isinstance(own, str):
        named[f"the recipe of {backbone.__name__}: backbone.weights"] = own
    for where, weights in named.items():
        if not weights_exist(weights):
            known = names_like(weights, registry().weights, LIST)
            raise UserError(
                f"{where}: unknown weights {in_json(weights)}; known: {known}; or a folder"
            )


def weights_exist(name: str) -> bool:
    """Return whether weights of a name ship, lie on the disk, or could be a repository's."""
    if name in registry().weights:
        return True
    from ..tools.hub import expand_path, split_hub_name  # takes half a second

    return expand_path(name).exists() or split_hub_name(name, (".safetensors", ".gguf")) is not None


def weights_notice(experiment: Experiment) -> str:
    """Return what to say where a backbone's weights began for another memory, "" elsewhere.

    They began for one rate (`BackboneSpec.rate_weights`), and the memory has another one, none, or
    others beside it. Weights that no rate is known of are not spoken of, nor is an experiment
    without a memory.
    """
    by_rate = _weights_by_rate(type(experiment.backbone))
    weights = getattr(experiment.backbone, "weights", None)
    own = [rate for rate, name in by_rate.items() if name == weights]
    rates = experiment.rates
    if not own or not experiment.remembers or (rates and all(rate in own for rate in rates)):
        return ""
    has = _and(rates) if rates else "no rate"
    parts = [f"backbone.weights {weights} began for a memory of rate {_and(own)}, this has {has}"]
    parts += [f"{by_rate[rate]} for {rate}" for rate in rates[:1] if rate in by_rate.keys() - own]
    return "; ".join([*parts, "null begins at random"])


def _and(rates: Iterable[Rate | None]) -> str:
    return " and ".join(map(str, rates))


def _recipe_for(experiment: Experiment, backbone: BackboneSpec | type[BackboneSpec]) -> Recipe:
    """Return the recipe of a backbone as the experiment's stage reads it."""
    finetunes = experiment.finetune is not None
    return recipe_of(backbone, finetunes=finetunes, rate=rate_of(experiment))


def second_stage(experiment: Experiment) -> Experiment:
    """Return Stage II of a Stage I experiment, as the recipe of its backbone has it.

    `train` and `cache` move to the recipe's values for Stage II as a new backbone would move them:
    what the experiment sets itself stays. The name gets `-finetune` behind it. One that is Stage II
    already is returned as it is.

    Raises:
        UserError: it has no memory.
    """
    if experiment.finetune is not None:
        return experiment
    if not experiment.remembers:
        raise UserError(f"{experiment.name} is Stage 0: it has no memory to go on from")
    old = recipe_of(experiment.backbone)
    new = recipe_of(experiment.backbone, finetunes=True)
    found = changes(experiment, old, new)
    name = f"{experiment.name}-finetune"
    started = evolved(experiment, {**found, ("name",): name, ("finetune",): FinetuneSpec()})
    made: Experiment = evolved(started, _finetune_of(started, new))
    return made


def _finetune_of(experiment: Experiment, recipe: Recipe) -> dict[Path, Any]:
    """Return what a recipe has of the fields of `finetune`, by path."""
    return {
        leaf.path: recipe[leaf.key]
        for leaf in leaves(experiment.finetune, ("finetune",))
        if leaf.key in recipe
    }


def _check_path(where: str, owner: Any, rest: str) -> None:
    """Raise UserError where `rest` is no path of fields below an attrs class."""
    name, _, below = rest.partition(".")
    known = hints(owner) if attrs.has(owner) else {}
    if name not in known:
        raise UserError(f"{where}: {unknown_field(name, known)}")
    if below:
        _check_path(where, known[name], below)


def check_recipe(backbone: type[BackboneSpec]) -> None:
    """Check that every key of a backbone's recipe is read by something, which takes its value.

    Weights that it names, and its `rate_weights`, must be somewhere.

    Raises:
        UserError: nothing reads a key, or its value is none that the field takes, or names no
            weights; with the key.
    """
    for finetunes in (False, True):
        _check_recipe(backbone, recipe_of(backbone, finetunes=finetunes))
    check_weights(backbone)
    try:
        recommended(backbone)
    except (TypeError, ValueError) as error:
        raise UserError(f"the recipe of {backbone.__name__}: backbone: {message(error)}") from error


def _check_recipe(backbone: type[BackboneSpec], recipe: Recipe) -> None:
    """Check a recipe as one stage reads it."""
    owners: dict[str, dict[str, Any]] = {}
    read = _keys_of_plugins()
    for key, value in recipe.items():
        first, _, rest = key.partition(".")
        where = f"the recipe of {backbone.__name__}: {key}"
        if key == RETRIEVERS:
            _check_value(where, value, tuple[RetrieverSpec, ...])
        elif key == TARGETS:
            _check_value(where, value, tuple[Target, ...])
        elif first in ROOTS:
            _nest(owners.setdefault(first, {}), rest.split("."), value)
        elif key not in read:
            fault = unknown_field(key, [*read, RETRIEVERS], what="key")
            raise UserError(f"{where}: {fault}")
        else:
            for cls, name in read[key]:
                _check_value(where, {name: value}, cls)
    owners.pop("backbone", None)
    specs = hints(Experiment) | {"finetune": FinetuneSpec}
    for first, values in owners.items():  # together: validators look at other fields, too
        _check_value(f"the recipe of {backbone.__name__}: {first}", values, specs[first])


def _keys_of_plugins() -> dict[str, list[tuple[type[PluginSpec], str]]]:
    """Return the spec classes and fields that follow each key which is no path."""
    found: dict[str, list[tuple[type[PluginSpec], str]]] = {}
    for plugin in registry().plugins.values():
        for attribute in attrs.fields(plugin.spec):
            key = attribute.metadata.get("recipe", "")
            if key:
                found.setdefault(key, []).append((plugin.spec, attribute.name))
    return found


def _nest(data: dict[str, Any], names: Sequence[str], value: Any) -> None:
    for name in names[:-1]:
        data = data.setdefault(name, {})
    data[names[-1]] = value


def _check_value(where: str, value: Any, hint: Any) -> None:
    try:
        from_json(to_json(value) if attrs.has(type(value)) else value, hint)
    except SpecError as error:
        raise UserError(f"{where}: {error.faults[0]}") from error


def changes(experiment: Experiment, old: Recipe, new: Recipe) -> dict[Path, Any]:
    """Return the new value of every leaf that follows the recipe, by path; no lists, no name."""
    found = [leaf for leaf in leaves(experiment) if _follows(experiment, leaf)]
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


def _follows(experiment: Experiment, leaf: Leaf) -> bool:
    backbone = leaf.path[0] == "backbone"
    never = () if experiment.remembers else OF_MEMORY
    return not backbone and leaf.key not in ("", "name", TARGETS, *never)


def moved(experiment: Experiment, backbone: type[BackboneSpec]) -> dict[Path, Any]:
    """Return what changes, besides the backbone, where an experiment is put on another one.

    Args:
        experiment: as it is.
        backbone: the class of the other one's spec.
    """
    old, new = (_recipe_for(experiment, x) for x in (experiment.backbone, backbone))
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
    """Return the rate of the first compressor that has one, or has one within; or None."""
    return next(iter(experiment.rates), None)


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
    found = changes(experiment, {}, _recipe_for(experiment, experiment.backbone))
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
        cls = candidates(BackboneSpec)[registry().get("backbone", spec).name]
        spec = recommended(cls, rate_of(experiment))
    changed: dict[Path, Any] = {("backbone",): spec}
    if type(spec) is not type(experiment.backbone):
        changed |= moved(experiment, type(spec))
    try:
        made: Experiment = evolved(experiment, changed)
    except (TypeError, ValueError) as error:
        raise SpecError([f"experiment: {message(error)}"]) from error
    return made


def recommended(backbone: type[B], rate: Rate | None = None) -> B:
    """Return the spec of a backbone as its recipe has it, for a memory of a rate."""
    return backbone(**backbone_fields(backbone, rate))


def backbone_fields(backbone: type[BackboneSpec], rate: Rate | None = None) -> dict[str, Any]:
    """Return the fields of the backbone itself that its recipe sets, for a memory of a rate."""
    recipe = recipe_of(backbone, rate=rate)
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
    old, new = (_recipe_for(experiment, x) for x in (experiment.backbone, backbone))
    follow = [(path_text(p), _at(experiment, p), value) for p, value in changed.items()]
    kept = []
    for leaf in leaves(experiment):
        wanted = new.get(leaf.key, leaf.default)
        depends = _follows(experiment, leaf) and (leaf.key in new or leaf.key in old)
        if depends and leaf.value != wanted and not _within(leaf.path, changed):
            kept.append((leaf.text, leaf.value, wanted))
    dropped = tuple(_own(experiment.backbone, rate_of(experiment)))
    name = registry().find(backbone).name
    return Swap(
        backbone=name,
        recipe=bool(new),
        follow=tuple(follow),
        kept=tuple(kept),
        dropped=dropped,
    )


def at_new_rate(
    old: Experiment, new: Experiment, *, weights: bool = True, retrievers: bool = True
) -> Experiment:
    """Return an experiment whose memory has another rate than before with what is of that one.

    What the recipe does not explain stays. A backbone that is new, too, has what is of the old rate
    so far.

    Args:
        old: before.
        new: with the other rate.
        weights: whether those of the backbone may follow.
        retrievers: whether floors may follow, which have the rate of the memory.
    """
    rates = (rate_of(old), rate_of(new))
    found: dict[Path, Any] = {}
    if rates[0] == rates[1]:
        return new
    before, after = (backbone_fields(type(new.backbone), rate).get("weights") for rate in rates)
    if weights and before != after and getattr(new.backbone, "weights", None) == before:
        found["backbone", "weights"] = after
    if retrievers:
        recipe = _recipe_for(new, new.backbone)
        lists = [retrievers_of(recipe, rate) for rate in rates]
        found[(RETRIEVERS,)] = _merged(new.retrievers, *lists)
    made: Experiment = evolved(new, found)
    return made


def _own(backbone: BackboneSpec, rate: Rate | None) -> Iterator[tuple[str, Any]]:
    """Yield path and value of what is neither a backbone's default nor its recipe's."""
    usual = backbone_fields(type(backbone), rate)
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
    recipe = _recipe_for(experiment, experiment.backbone)
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
