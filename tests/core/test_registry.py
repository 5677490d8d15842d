"""Discovery: one door for all plugins, third parties through entry points, nothing fatal."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from longtake.backbones.wan.specs import TinyWan
from longtake.core.config import SpecError, from_json
from longtake.core.errors import UserError
from longtake.core.hooks import KINDS, Plugin
from longtake.core.interfaces.spec import CompressorSpec, MetricSpec
from longtake.core.registry import build, nearest, origins, plug_in, registry
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.retrievers.specs import MeanFrame

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


def test_a_third_party_is_found(install: Install) -> None:
    install("Somebody-Elses.Metrics")
    assert registry().origins["metric", "mine"] == "Somebody-Elses.Metrics"
    assert from_json({"type": "mine"}, MetricSpec) == registry().get("metric", "mine").spec()


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


def test_two_plugins_of_one_name_are_an_error_that_names_both(install: Install) -> None:
    install("one")
    install("two")
    with pytest.raises(UserError) as caught:
        registry()
    said = str(caught.value)
    assert "two plugins name a metric 'mine'" in said
    assert "one (one:Own)" in said and "two (two:Own)" in said and "LONGTAKE_PLUGINS" in said


def test_a_built_in_cannot_be_taken_over(install: Install) -> None:
    install("taker", name="psnr")
    with pytest.raises(UserError, match=r"two plugins name a metric 'psnr': longtake .* and taker"):
        registry()


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
    assert registry().broken == [] and "psnr" in names("metric")


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
    with pytest.raises(UserError, match=r"two plugins name .*'same': one and two"):
        registry()


def test_specs_keep_working_after_discovery_is_repeated() -> None:
    registry.cache_clear()
    assert from_json({"type": "tiny-wan"}, TinyWan) == TinyWan()
