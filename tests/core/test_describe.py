"""What `list` and `show` say: figures of the paper beside ours, every field explained."""

from __future__ import annotations

import json

import attrs
import pytest

from longtake.backbones.wan.specs import TinyWan
from longtake.core import show as describe
from longtake.core.config import from_json
from longtake.core.experiment import CacheSpec, Experiment
from longtake.core.hooks import Plugin
from longtake.core.registry import registry
from longtake.core.values.grid import Geometry, Rate, Size3
from longtake.plugins.compressors.specs import Conv
from longtake.plugins.maskers.specs import Noise
from longtake.plugins.metrics.specs import Psnr
from longtake.plugins.retrievers.specs import Flow

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
    assert fields["backbone.codec.channels"]["value"] == 48
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
