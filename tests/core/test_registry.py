"""Discovery: one door for all plugins, third parties through entry points, nothing fatal."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longtake.backbones.codecs.autoencoder import find_weights
from longtake.backbones.wan.specs import TinyWan
from longtake.backbones.weights.find import find_dit
from longtake.core.cli.options import find_run
from longtake.core.config import SpecError, from_json
from longtake.core.config.load import load_experiment
from longtake.core.errors import UserError
from longtake.core.hooks import KINDS, Plugin
from longtake.core.interfaces.spec import CompressorSpec, MetricSpec
from longtake.core.registry import build, import_file, origins, plug_in, registry
from longtake.core.tools.words import closest, names_like, nearest
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.retrievers.specs import MeanFrame

from ..program import run

HOOKS = """
from attrs import frozen
from longtake.core.hooks import Plugin, impl
from longtake.core.interfaces.spec import MetricSpec

@frozen(kw_only=True)
class Own(MetricSpec):
    pass

@impl
def longtake_metrics():
    return [Plugin(name="{name}", summary="one line", spec=Own, target="{package}:Own")]
"""
IMPL = "from longtake.core.hooks import impl\n@impl\ndef longtake_"
NAMED = {
    "experiments": "'x:y'",
    "weights": "__import__('pathlib').Path('x')",
    "geometries": "__import__('longtake.core.values.grid').core.values.grid.Geometry(\n"
    "        channels=1, vae_stride=None, patch=None, width=1, blocks=1, fps=1.0)",
}
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on sys.path: a module and the metadata that pip would write."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("LONGTAKE_PLUGINS", raising=False)

    def put(dist: str, *, name: str = "mine", code: str | None = None) -> None:
        package = dist.lower().replace("-", "_").replace(".", "_")
        text = HOOKS.format(name=name, package=package) if code is None else code
        monkeypatch.delitem(sys.modules, package, raising=False)  # of another test's folder
        (tmp_path / f"{package}.py").write_text(text)
        info = tmp_path / f"{dist.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {dist}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[longtake]\nhooks = {package}\n")
        registry.cache_clear()

    registry.cache_clear()
    yield put
    registry.cache_clear()
    for module in [m for m, x in sys.modules.items() if _from(x, tmp_path)]:
        del sys.modules[module]


def _from(module: object, folder: Path) -> bool:
    return str(getattr(module, "__file__", None) or "").startswith(str(folder))


def names(kind: str) -> list[str]:
    return [plugin.name for plugin in registry().of(kind)]


def test_what_ships_comes_through_the_door() -> None:
    assert "conv" in names("compressor") and "tiny-wan" in names("backbone")
    assert registry().origins["compressor", "conv"] == "longtake"
    assert registry().experiments and registry().geometries
    assert {kind for kind, _ in registry().plugins} <= set(KINDS)


def test_a_plugin_is_found_by_name_and_by_spec() -> None:
    conv = registry().get("compressor", "conv")
    assert registry().find(Conv()) is registry().find(Conv) is conv
    assert (conv.kind, Conv().kind) == ("compressor", "compressor")
    assert isinstance(build(MeanFrame()), registry().load(MeanFrame()))
    with pytest.raises(UserError, match="no metric plugin has the spec class MetricSpec"):
        registry().find(MetricSpec)


@pytest.mark.parametrize("plugin", registry().plugins.values(), ids=lambda p: f"{p.kind}-{p.name}")
def test_every_shipped_plugin_can_be_loaded(plugin: Plugin) -> None:
    assert isinstance(plugin.load(), type)


def test_an_unknown_name_lists_the_known_ones_nearest_first() -> None:
    with pytest.raises(UserError) as caught:
        registry().get("metric", "ssmi")
    assert str(caught.value).startswith("unknown metric 'ssmi'; known: ssim, ")
    assert nearest("Upsmaple", ["flow", "mean-frame", "upsample"])[0] == "upsample"
    assert nearest("tinywan", ["tiny-plain", "mytinywan", "tiny-wan-2x2x2"])[0] == "tiny-wan-2x2x2"


def test_of_many_names_the_nearest_are_listed_and_how_to_see_all() -> None:
    few, many = [f"name-{i}" for i in range(8)], [f"name-{i:02}" for i in range(1200)]
    assert names_like("x", []) == "none"
    assert names_like("name-5", few).split(", ") == sorted(few, key=lambda name: name != "name-5")
    said = names_like("nme-777", many, "longtake list")
    listed, _, rest = said.partition(" and ")
    assert rest == "1,195 more (`longtake list` lists all)"
    assert names_like("nme-777", many).endswith(" and 1,195 more")
    assert listed.count(", ") == 4 and "name-77" in listed
    assert names_like("nme-777", reversed(many), "longtake list") == said, "in any order"


def test_the_closest_name_is_one_that_is_much_like_it() -> None:
    assert closest("stepz", ["rate", "steps"]) == "steps"
    assert closest("zzz", ["rate", "steps"]) is None and closest("x", []) is None


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("show", "tinywan"), "unknown experiment 'tinywan'; known: tiny-wan-2x2x2, "),
        (("show", "compressor", "cnov"), "unknown compressor 'cnov'; known: conv, "),
        (
            ("show", "tiny-wan-2x2x2", "--set", "compressor=cnov"),
            "compressors[0].type: unknown compressor 'cnov'; known: conv, ",
        ),
        (("check", "cnov"), "unknown plugin 'cnov'; known: conv, "),
    ],
)
def test_an_unknown_name_is_one_short_line_and_says_how_to_list_all(
    words: tuple[str, ...], line: str
) -> None:
    code, out, said = run(*words)
    assert (code, out) == (2, "") and said.startswith(f"longtake: {line}")
    assert said.count("\n") == 1 and "(`longtake list` lists all)" in said and len(said) < 300


@pytest.mark.parametrize("name", ["tiny-wan-2x2x3", "./tiny-wan-2x2x2"])
def test_weights_that_are_nowhere_name_those_that_ship(name: str) -> None:
    with pytest.raises(UserError, match="or weights that ship: tiny-wan-2x2x2, ") as caught:
        find_dit(name)
    assert "tiny-ae" not in str(caught.value), "a codec"
    with pytest.raises(UserError, match="or weights that ship: tiny-ae$"):
        find_weights("tiny-ab")
    with pytest.raises(UserError, match="no such run; weights that ship: tiny-wan-2x2x2, "):
        find_run("tiny-wan-2x2")


def test_a_third_party_is_found(install: Install) -> None:
    install("Somebody-Elses.Metrics")
    assert registry().origins["metric", "mine"] == "Somebody-Elses.Metrics"
    assert from_json({"type": "mine"}, MetricSpec) == registry().get("metric", "mine").spec()


def test_of_two_strangers_of_one_name_neither_loads_and_using_it_names_both(
    install: Install,
) -> None:
    for name in ("one", "two"):
        install(name)
    install("three", name="other")
    assert "mine" not in names("metric") and "other" in names("metric")
    (line,) = registry().broken
    assert line.startswith("one (one:Own) and two (two:Own): both name a metric 'mine', neither")
    with pytest.raises(SpecError, match=r"not loaded: one \(one:Own\) and two \(two:Own\) both"):
        from_json({"type": "mine"}, MetricSpec)
    with pytest.raises(UserError, match=r"LONGTAKE_PLUGINS"):
        registry().get("metric", "mine")
    install("zero")
    said = registry().refused["metric", "mine"]
    assert all(f"{name} ({name}:Own)" in said for name in ("one", "two", "zero"))
    assert "mine" not in names("metric") and len(registry().broken) == 2


def test_what_a_spec_is_made_of_names_its_distributions(install: Install, tmp_path: Path) -> None:
    install("Somebody-Elses.Metrics")
    own = registry().get("metric", "mine").spec()
    assert origins((Conv(), (own, MeanFrame()))) == {"Somebody-Elses.Metrics": "1.0"}
    assert origins(Conv()) == {}
    path = tmp_path / "alone.py"
    path.write_text(HOOKS.format(name="alone", package="alone"))
    plug_in(path)
    alone = registry().get("metric", "alone").spec()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert origins(alone) == {str(path): f"sha256:{digest}"}


def test_a_built_in_cannot_be_taken_over(install: Install) -> None:
    install("taker", name="psnr")
    install("good")
    assert registry().origins["metric", "psnr"] == "longtake"
    (line,) = registry().broken
    assert line.startswith(
        "taker (taker:Own): metric 'psnr' is the name of one that longtake ships"
    )
    assert "mine" in names("metric")


RECORD = """
from attrs import frozen
from longtake.core.hooks import Plugin, impl
from longtake.core.interfaces.metric import Metric
from longtake.core.interfaces.spec import CompressorSpec, MetricSpec, PluginSpec
from longtake.plugins.metrics.specs import Psnr

@frozen(kw_only=True)
class Good(MetricSpec):
    pass

@frozen(kw_only=True)
class Kindless(PluginSpec):
    pass

class Plain(MetricSpec):
    size: int = 3

@frozen(kw_only=True)
class Wrong(CompressorSpec):
    pass

class Unfinished(Metric):
    pass

class Whole(Unfinished):
    def __call__(self, reference, result):
        return reference.mean((1, 2, 3))

@impl
def longtake_metrics():
    whole = Plugin(name="whole", summary="", spec=Good, target=f"{__name__}:Whole")
    bad = dict(name="bad", summary="", spec=Own, target=f"{__name__}:Whole")
    return [whole, Plugin(**{**bad, **CHANGES})]

@frozen(kw_only=True)
class Own(MetricSpec):
    pass

@impl
def longtake_retrievers():
    return []
"""
ELSEWHERE = {
    "gone": "import torch_that_is_not_there",
    "far": "from . import gone as g\nclass Far:\n    pass",
    "half": "from longtake.core.interfaces.compressor import Compressor\n"
    "class Half(Compressor):\n    def forward(self, history):\n        pass",
    "rest": "from .half import Half\nclass Rest(Half):\n"
    "    def step(self, state, chunk): pass\n    def pending(self, state): pass\n"
    "    @classmethod\n    def needs(cls, spec): pass\n"
    "    context_length = classmethod(lambda cls, spec, geometry, size: None)",
    "typo": "x = = 1",
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ("dict(spec=int)", "metric 'bad': its spec is a class on a base of"),
        ("dict(spec=Own())", "metric 'bad': its spec is a class on a base of"),
        ("dict(spec=Kindless)", "metric 'bad': its spec Kindless is of no kind"),
        ("dict(spec=Plain)", "metric 'bad': its spec Plain lacks @attrs.frozen"),
        ("dict(spec=Wrong)", "metric 'bad': its spec Wrong is a compressor's, so it belongs into "
         "longtake_compressors, not longtake_metrics"),
        ("dict(spec=Good)", "metric 'bad': its spec Good is that of 'whole'"),
        ("dict(spec=Psnr)", "metric 'bad': its spec Psnr is that of 'psnr'"),
        ("dict(name=3)", "longtake_metrics: a record's name is a text, not 3"),
        ("dict(summary=None)", "metric 'bad': its summary is a text"),
        ("dict(target='x')", "metric 'bad': its target is written package.module:Class"),
        ("dict(target=None)", "metric 'bad': its target is written package.module:Class"),
        ("dict(target='no_such_module_x:Y')", "metric 'bad': no_such_module_x:Y: there is no"),
        ("dict(target=f'{__name__}:Nobody')", "metric 'bad': bad:Nobody: bad has no Nobody"),
        ("dict(target=f'{__name__}:Unfinished')",
         "metric 'bad': bad:Unfinished: the class is unfinished: it does not define __call__"),
        ("dict(target='other.gone:Y')",
         "metric 'bad': other.gone:Y: it needs torch_that_is_not_there, which is not installed"),
        ("dict(target='other.far:Far')",
         "metric 'bad': other.far:Far: it needs torch_that_is_not_there, which is not installed"),
        ("dict(target='other.half:Half')", "metric 'bad': other.half:Half: the class is "
         "unfinished: it does not define context_length, needs, pending, step"),
        ("dict(target='other.half:Nobody')", "metric 'bad': other.half:Nobody: other.half has no"),
        ("dict(target='other.typo:Y')", "metric 'bad': other.typo:Y: other.typo cannot be read: "),
    ],
)  # fmt: skip
def test_one_bad_record_is_one_line_and_the_rest_loads(
    install: Install, tmp_path: Path, changes: str, said: str
) -> None:
    (tmp_path / "other").mkdir()
    for name, text in ELSEWHERE.items():
        (tmp_path / "other" / f"{name}.py").write_text(text)
    install("bad", code=RECORD.replace("CHANGES", changes))
    install("good")
    (line,) = registry().broken
    assert line.startswith(f"bad: {said}") and "\n" not in line
    assert {"whole", "mine", "psnr"} <= set(names("metric")) and "bad" not in names("metric")
    assert not any(module.startswith("other.") for module in sys.modules), "nothing is imported"


def test_a_class_finished_in_another_module_loads(install: Install, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for name, text in ELSEWHERE.items():
        (tmp_path / "other" / f"{name}.py").write_text(text)
    install("bad", code=RECORD.replace("CHANGES", "dict(target='other.rest:Rest')"))
    assert registry().broken == [] and registry().get("metric", "bad").target == "other.rest:Rest"


def test_what_only_an_import_tells_is_one_line_when_it_is_used(
    install: Install, tmp_path: Path
) -> None:
    (tmp_path / "late.py").write_text("class Y:\n    1 / 0")
    install("bad", code=RECORD.replace("CHANGES", "dict(target='late:Y')"))
    spec = registry().get("metric", "bad").spec()
    with pytest.raises(UserError, match="metric 'bad' of bad cannot be used: late:Y: ZeroDivision"):
        build(spec)


def test_names_in_the_variable_that_mean_nothing_are_said(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("one")
    monkeypatch.setenv("LONGTAKE_PLUGINS", "one,oen,not-there.py")
    registry.cache_clear()
    first, second = registry().broken
    assert first.startswith("not-there.py: not-there.py failed to import: FileNotFoundError")
    assert second.startswith("oen: LONGTAKE_PLUGINS names it, but no installed distribution")
    assert "known: one" in second and "mine" in names("metric")


def test_a_module_without_hooks_is_said(install: Install) -> None:
    install("empty", code="x = 1")
    (line,) = registry().broken
    assert line.startswith("empty: it has no hook, such as longtake_compressors under @longtake")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 / 0", "bad: bad failed to import: ZeroDivisionError: division by zero"),
        ("import not_there_x", "bad: bad failed to import: ModuleNotFoundError: No module named"),
        ("x = = 1", "bad: bad failed to import: SyntaxError: "),
        (IMPL + "metrics():\n    return 1 / 0",
         "bad: its hooks failed: ZeroDivisionError: division by zero"),
        (IMPL + "experiments():\n    return 1 / 0",
         "bad: its hooks failed: ZeroDivisionError: division by zero"),
        (IMPL + "metrics():\n    return ['psnr']",
         "bad: its hooks failed: TypeError: longtake_metrics gives Plugin records, not 'psnr'"),
        ("import sys\nsys.exit(3)", "bad: bad failed to import: SystemExit: 3"),
        (IMPL + "metrics():\n    raise SystemExit('no')",
         "bad: its hooks failed: SystemExit: no"),
        (IMPL + "experiments():\n    return {'x': 3}",
         "bad: its hooks failed: TypeError: longtake_experiments gives a str by name, not 3"),
        (IMPL + "experiments():\n    return {3: 'x'}",
         "bad: its hooks failed: TypeError: longtake_experiments gives names, not 3"),
        (IMPL + "weights():\n    return {'x': 'y'}",
         "bad: its hooks failed: TypeError: longtake_weights gives a Path by name, not 'y'"),
        (IMPL + "geometries():\n    return {'x': None}",
         "bad: its hooks failed: TypeError: longtake_geometries gives a Geometry by name, not "),
        (IMPL + "metrisc():\n    return []",
         "bad: its hooks failed: PluginValidationError: "),
    ],
    ids=["import", "missing", "syntax", "hook", "experiments", "record", "exits", "hook-exits",
         "target", "name", "weights", "geometry", "misspelt"],
)  # fmt: skip
def test_a_broken_third_party_is_reported_and_skipped(
    install: Install, code: str, said: str
) -> None:
    install("bad", code=code)
    install("good")
    assert "mine" in names("metric")
    (line,) = registry().broken
    assert line.startswith(said) and "\n" not in line


def test_an_unknown_plugin_mentions_what_did_not_load(install: Install) -> None:
    install("bad", code="1 / 0")
    with pytest.raises(SpecError, match="known: conv.*; not loaded: bad: bad failed to import"):
        from_json({"type": "cnov"}, CompressorSpec)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("one", {"of-one"}), (" One , two.x", {"of-one", "of-two"}), ("", set()), ("other", set()),
     ("TWO_X", {"of-two"})],
)  # fmt: skip
def test_only_the_wanted_third_parties_load(
    install: Install, monkeypatch: pytest.MonkeyPatch, wanted: str, found: set[str]
) -> None:
    install("one", name="of-one")
    install("two-x", name="of-two")
    install("broken", code="1 / 0")
    monkeypatch.setenv("LONGTAKE_PLUGINS", wanted)
    assert {name for name in names("metric") if name.startswith("of-")} == found
    unknown = [line for line in registry().broken if "LONGTAKE_PLUGINS names it" in line]
    assert len(unknown) == (wanted == "other") and "psnr" in names("metric")
    assert registry().broken == unknown


def test_a_plugin_left_out_is_never_imported(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("left-out")
    monkeypatch.setenv("LONGTAKE_PLUGINS", "")
    registry()
    assert "left_out" not in sys.modules


@pytest.mark.parametrize("hook", ["experiments", "weights", "geometries"])
def test_names_of_other_hooks_must_differ_too(install: Install, hook: str) -> None:
    code = f"{IMPL}{hook}():\n    return {{'same': {NAMED[hook]}}}"
    install("one", code=code)
    install("two", code=code)
    install("three", code=f"{IMPL}{hook}():\n    return {{'tiny': {NAMED[hook]}}}")
    assert "same" not in getattr(registry(), hook)
    lines = registry().broken
    assert lines[0].startswith("one (") and "two (" in lines[0] and "'same'" in lines[0]
    with pytest.raises(UserError, match=r"'same' is not loaded: one \(.* and two \(.* both"):
        registry().check_loaded(hook, "same")
    if hook == "experiments":
        with pytest.raises(UserError, match="experiment 'same' is not loaded"):
            load_experiment("same")


def test_specs_keep_working_after_discovery_is_repeated() -> None:
    registry.cache_clear()
    assert from_json({"type": "tiny-wan"}, TinyWan) == TinyWan()


LIGHT = """
from attrs import frozen
from longtake.core.hooks import Plugin, impl
from longtake.core.interfaces.spec import MetricSpec

@frozen(kw_only=True)
class Lone(MetricSpec):
    pass

@impl
def longtake_metrics():
    return [Plugin(name="lone", summary="", spec=Lone, target="HEAVY:LoneMetric")]
"""
HEAVY = """
from longtake.core.interfaces.metric import Metric
from LIGHT import Lone

class LoneMetric(Metric):
    spec_class = Lone

    def __call__(self, reference, result):
        return (result - reference).abs().mean(dim=(1, 2, 3))
"""


@pytest.mark.parametrize("package", ["", "own_package_", "own_package_.inner_"])
def test_a_file_s_spec_and_the_module_that_it_names_share_their_classes(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [part for part in package.split(".") if part]
    folder = tmp_path.joinpath(*names)
    folder.mkdir(parents=True, exist_ok=True)
    for depth in range(len(names)):
        tmp_path.joinpath(*names[: depth + 1], "__init__.py").touch()
    light, heavy = f"light_{len(names)}", f"heavy_{len(names)}"
    dotted = f"{package}." if package else ""
    (folder / f"{light}.py").write_text(LIGHT.replace("HEAVY", dotted + heavy))
    (folder / f"{heavy}.py").write_text(HEAVY.replace("LIGHT", dotted + light))
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setenv("LONGTAKE_PLUGINS", str(folder / f"{light}.py"))
    registry.cache_clear()
    try:
        assert registry().broken == []
        plugin = registry().get("metric", "lone")
        assert registry().load(plugin.spec()).spec_class is plugin.spec
        again = import_file(folder / f"{light}.py")  # as an experiment in the same file is read
        assert vars(again)["Lone"] is plugin.spec
    finally:
        registry.cache_clear()
        for name in [n for n in sys.modules if n.startswith((package or light, "own_package_"))]:
            del sys.modules[name]


def test_a_file_that_changed_is_run_again_and_hides_no_other_module(tmp_path: Path) -> None:
    path = tmp_path / "wave.py"  # of the standard library, too
    path.write_text("x = 1\n")
    before, first = list(sys.path), import_file(path)
    assert vars(first)["x"] == 1 and import_file(path) is first
    assert Path(importlib.import_module("wave").__file__ or "") != path
    path.write_text("x = 2\n")
    assert vars(import_file(path))["x"] == 2 and sys.path == before
