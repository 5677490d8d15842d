"""What `list` and `show` say: figures of the paper beside ours, every field explained."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import attrs
import pytest
from attrs.validators import optional

from longtake.backbones.wan.specs import TinyWan
from longtake.core import show as describe
from longtake.core.config import from_json
from longtake.core.errors import UserError
from longtake.core.experiment import CacheSpec, Experiment
from longtake.core.hooks import KINDS, Plugin
from longtake.core.interfaces.spec import (
    BackboneSpec,
    between,
    each,
    ge,
    gt,
    in_,
    instance_of,
    lt,
    range_of,
)
from longtake.core.registry import registry
from longtake.core.values.grid import Geometry, Rate, Size3
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.maskers.specs import Noise
from longtake.plugins.metrics.specs import Psnr
from longtake.plugins.retrievers.specs import Flow

from ..program import run
from ..test_house import ROOT

EXPERIMENT = Experiment(
    name="test",
    backbone=TinyWan(),
    compressors=(Conv(rate=Rate(height=2, width=2, time=2)),),
    masker=Noise(),
    retrievers=(Flow(),),
    metrics=(Psnr(),),
    cache=CacheSpec(area=96 * 160),
)


def test_the_table_of_the_paper() -> None:
    geometry = Geometry(
        channels=16, width=1, blocks=1, fps=24.0,
        vae_stride=Size3(time=4, height=8, width=8), patch=Size3(time=1, height=2, width=2),
    )  # fmt: skip
    table = describe.rate_table("x", geometry, 480, 832)
    rows = {row["rate"]: row for row in table["rows"]}
    assert (table["latents"], list(rows)[0]) == (120, "none")
    assert rows["none"]["paper"] == rows["none"]["ours"] == {"floor": 187_200, "ceil": 187_200}
    assert rows["4x4x2"]["paper"] == {"floor": 5_460, "ceil": 6_240}
    assert rows["4x4x2"]["ours"] == {"floor": 5_551, "ceil": 6_344}
    assert rows["2x2x8"]["paper"] == {"floor": 5_850, "ceil": 5_850}
    assert rows["2x2x8"]["ours"] == {"floor": 6_240, "ceil": 6_240}


def test_every_known_backbone_and_the_experiments_own_have_a_table() -> None:
    tables = describe.show("test", EXPERIMENT)["rates"]
    assert [table["geometry"] for table in tables] == ["tiny-wan", *sorted(registry().geometries)]
    assert {(t["height"], t["width"]) for t in tables[1:]} == {(480, 832)}


def test_what_a_memory_token_could_hold_stands_beside_what_it_stands_for() -> None:
    shown = describe.show("test", EXPERIMENT)["proportions"]
    rows = {row["geometry"]: row for row in shown}
    listed = sorted(plugin.name for plugin in registry().of("backbone"))
    assert [row["geometry"] for row in shown] == [
        "tiny-wan", *(name for name in listed if name != "tiny-wan")
    ]  # fmt: skip
    assert rows["framepack"] == rows["hunyuan"] | {"geometry": "framepack"}
    assert (rows["tiny-hunyuan"]["width"], rows["tiny-hunyuan"]["lr"]) == (384, 64)
    hunyuan, dense = rows["hunyuan"], rows["wan22-5b"]
    assert (hunyuan["width"], hunyuan["lr"], hunyuan["cells"]["2x2x2"]) == (3072, 64, 512)
    assert (dense["width"], dense["lr"], dense["cells"]["2x2x2"]) == (3072, 192, 1536)
    assert hunyuan["cells"]["4x4x2"] == 2048


def test_a_backbone_without_shapes_at_its_defaults_is_left_out_of_that_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = describe.show("test", EXPERIMENT)["proportions"]
    bare = Plugin(name="bare", summary="no geometry", spec=BackboneSpec, target="a:b")
    needy = Plugin(name="needy", summary="its rate is required", spec=Conv, target="a:b")
    for plugin in (bare, needy):
        monkeypatch.setitem(registry().plugins, ("backbone", plugin.name), plugin)
    assert describe.show("test", EXPERIMENT)["proportions"] == before


def test_context_lengths_are_those_of_the_compressors() -> None:
    context = describe.context_lengths(EXPERIMENT)
    assert (context["height"], context["width"], context["fps"]) == (96, 176, 8.0)
    rows = {row["seconds"]: row for row in context["rows"]}
    assert (rows[5]["latents"], rows[20]["latents"], rows[60]["latents"]) == (10, 40, 120)
    assert rows[20]["tokens"] == 21 * 3 * 6 and rows[20]["exact"]
    assert rows[20]["uncompressed"] == 40 * 6 * 11
    (one,) = EXPERIMENT.compressors
    two = attrs.evolve(EXPERIMENT, compressors=(one, attrs.evolve(one, hr=False)))
    assert describe.context_lengths(two)["rows"][1]["tokens"] == 2 * rows[20]["tokens"]


def test_show_is_json_that_resolves_to_the_experiment() -> None:
    data = json.loads(json.dumps(describe.show("test", EXPERIMENT)))
    assert from_json(data["experiment"], Experiment) == EXPERIMENT
    fields = {row["path"]: row for row in data["fields"]}
    assert fields["compressors[0].rate"]["value"] == "2x2x2"
    assert fields["backbone.codec.channels"]["value"] == 16
    assert "value" not in fields["train"]
    assert all(row["doc"] for row in fields.values())


def test_list_names_what_plugs_in_and_what_did_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    found = registry()
    own = Plugin(name="own", summary="a plugin [of] mine", spec=Conv, target="a:b")
    monkeypatch.setitem(found.plugins, ("compressor", "own"), own)
    monkeypatch.setitem(found.origins, ("compressor", "own"), "my-dist")
    monkeypatch.setattr(found, "broken", ["bad: bad failed to import: no [reason]"])
    data = describe.list_plugins()
    row = {"kind": "compressor", "name": "own", "summary": own.summary, "distribution": "my-dist"}
    assert row in data["plugins"] and data["broken"] == found.broken
    assert {e["name"] for e in data["experiments"]} == set(found.experiments)
    assert json.loads(json.dumps(data)) == data


def test_what_is_printed_says_it_all(capsys: pytest.CaptureFixture[str]) -> None:
    data = describe.list_plugins()
    data["broken"] = ["bad: bad failed to import: no [reason]"]
    data["plugins"][0]["summary"] = "a plugin [of] mine"
    describe.print_plugins(data)
    out = capsys.readouterr().out
    assert "a plugin [of] mine" in out and "not loaded: bad: bad failed to import: no [reas" in out
    shown = describe.show("test", EXPERIMENT)
    describe.print_show(shown, fields=True)
    out = capsys.readouterr().out
    assert out.startswith("{") and '"rate": "2x2x2"' in out
    assert "5,460 / 6,240" in out and "20 s" in out and "378" in out
    assert "optimizer steps" in out
    describe.print_show(shown)
    assert "optimizer steps" not in capsys.readouterr().out


def test_one_plugin_is_shown_by_its_fields_and_where_it_comes_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = describe.show_plugin("masker", "shift")
    assert (data["distribution"], bool(data["version"])) == ("longtake", True)
    assert data["target"] == "longtake.plugins.maskers.hiding:ShiftMasker"
    rows = {row["path"]: row for row in data["fields"]}
    assert {name: rows[name]["range"] for name in ("counts", "clean", "fill") if name in rows} == {
        "counts": "each ≥ 1, at least 1",
        "clean": "0 to 1",
    }
    assert rows["where"]["range"] == "random, last" and rows["where"]["default"] == "random"
    assert rows["amount"] == {
        "path": "amount", "type": "float", "required": False, "range": "> 0.0", "default": 3.0,
        "doc": "shift at level 1, in standard deviations of latents (1); also of pixels",
    }  # fmt: skip
    describe.print_plugin(json.loads(json.dumps(data)))
    out = capsys.readouterr().out
    assert "from longtake" in out and "[1, 2, 4]" in out and "in standard deviations" in out


def test_fields_of_nested_specs_have_the_values_that_stand_there() -> None:
    data = describe.show_plugin("backbone", "wan22-5b")
    rows = {row["path"]: row for row in data["fields"]}
    assert rows["codec"]["default"] == "wan-vae" and rows["codec.channels"]["default"] == 48


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_can_be_shown(kind: str) -> None:
    for plugin in registry().of(kind):
        shown = describe.show_plugin(kind.replace("_", "-"), plugin.name)
        assert all(row["doc"] for row in shown["fields"]), plugin.name
    text = describe.interface(kind)
    assert "Method resolution order" in text and "register_forward_hook" not in text


def test_a_wrong_kind_or_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no kind of plugins 'metrc'; known: metric"):
        describe.show_plugin("metrc", "psnr")
    with pytest.raises(UserError, match="unknown metric 'psnt'; known: psnr"):
        describe.show_plugin("metric", "psnt")


def test_list_says_what_a_missing_extra_would_bring(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {row["install"] for row in describe.extras()}
    assert named == {f"longtake[{name}]" for name in project["optional-dependencies"]} - {
        "longtake[test]"
    }
    monkeypatch.setattr(describe, "_is_installed", lambda module: module != "torchvision")
    data = describe.list_plugins()
    (row,) = [row for row in data["extras"] if not row["installed"]]
    assert row == {"install": "longtake[lpips]", "brings": "metric lpips", "installed": False}
    describe.print_plugins(data)
    assert 'pip install "longtake[lpips]"   metric lpips' in capsys.readouterr().out
    assert describe.show_plugin("metric", "lpips")["missing"] == ["longtake[lpips]"]


@pytest.mark.parametrize(
    ("validator", "words"),
    [
        (between(0, 2), "0 to 2"),
        (ge(1), "≥ 1"),
        (optional(gt(0)), "> 0"),
        ([ge(1), lt(5)], "≥ 1, < 5"),
        (each(in_(("a", "b")), at_least=2), "each a, b, at least 2"),
        (instance_of(int), ""),
        (None, ""),
    ],
)
def test_ranges_are_read_from_validators(validator: Any, words: str) -> None:
    checked = attrs.validators.and_(*validator) if isinstance(validator, list) else validator
    assert range_of(checked) == words


def test_the_verb_shows_plugins_and_kinds() -> None:
    code, out, err = run("show", "masker", "noise", "--json")
    assert code == 0 and json.loads(out)["name"] == "noise", err
    code, out, _ = run("show", "compressor")
    assert code == 0 and "context_length(spec: S" in out.replace("'S'", "S")
    code, out, err = run("show", "masker", "noise", "--set", "clean=0")
    assert (code, out) == (2, "") and "--set, --fields, --picture and --video are for exp" in err
    code, _, err = run("show", "maskr", "noise")
    assert code == 2 and "no kind of plugins 'maskr'; known: masker" in err
